"""YAML text as places: a value, its dotted key, and where it stands, so that errors can say so.

Read by what is expected at each place, not by what YAML guesses: a key `on` is a text, never true.
Bounded: size, depth, one document; no anchors, aliases or tags, which a policy does not need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any, Final, TypeVar

import yaml

from fedfactory.contracts.errors import UsageError, ValueRangeError
from fedfactory.contracts.orders import Scalar

MAX_CHARACTERS: Final = 64 * 1024
MAX_DEPTH: Final = 8
MAX_DIGITS: Final = 30
_WHOLE: Final = re.compile(rf"[-+]?\d{{1,{MAX_DIGITS}}}")
_NUMBER: Final = re.compile(rf"[-+]?(\d{{1,{MAX_DIGITS}}}\.?\d*|\.\d+)([eE][-+]?\d{{1,3}})?")
_NONE: Final = ("null", "~", "")
W = TypeVar("W", bound=str)


class PolicyFileError(UsageError):
    """The policy file does not hold."""


class Place:
    """One value of the file and the dotted key it stands under."""

    def __init__(self, source: Source, key: str, node: yaml.Node) -> None:
        self.key = key
        self._source = source
        self._node = node
        source.marks[key] = node.start_mark

    def wrong(self, expected: str) -> PolicyFileError:
        """Return the error that says what was expected here."""
        return self._source.error(
            self._node.start_mark, f"{self.key or 'the file'}: expected {expected}"
        )

    def entries(self) -> dict[str, Place]:
        """Return the places under each key, whatever the keys are.

        Raises:
            PolicyFileError: no mapping, a key that is no text, or one that comes twice.
        """
        if not isinstance(self._node, yaml.MappingNode):
            raise self.wrong("keys and values")
        found: dict[str, Place] = {}
        for key_node, value in self._node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._source.error(key_node.start_mark, "a key must be a text")
            key = str(key_node.value)
            if key in found:
                shown = self._below(key)
                raise self._source.error(key_node.start_mark, f"{shown}: the key comes twice")
            found[key] = Place(self._source, self._below(key), value)
            self._source.marks[found[key].key] = key_node.start_mark
        return found

    def fields(self, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Place]:
        """Return the places under fixed keys.

        Raises:
            PolicyFileError: an unknown key, or a missing one.
        """
        found = self.entries()
        known = sorted({*required, *optional})
        for key, place in found.items():
            if key not in known:
                raise place.unknown(known)
        if missing := sorted(set(required) - found.keys()):
            keys = ", ".join(self._below(key) for key in missing)
            raise self._source.error(self._node.start_mark, f"{keys}: the key is missing")
        return found

    def unknown(self, known: Sequence[str]) -> PolicyFileError:
        """Return the error for a key that is not among `known`."""
        near = get_close_matches(self.key.rpartition(".")[2], known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return self._source.error(
            self._source.marks[self.key],
            f"{ascii(self.key)[1:-1]}: unknown key; known: {', '.join(known)}{hint}",
        )

    def items(self) -> list[Place]:
        """Return the places of a list."""
        if not isinstance(self._node, yaml.SequenceNode):
            raise self.wrong("a list, as in [a, b]")
        return [
            Place(self._source, f"{self.key}[{index}]", node)
            for index, node in enumerate(self._node.value)
        ]

    def is_mapping(self) -> bool:
        """Whether the value is keys and values."""
        return isinstance(self._node, yaml.MappingNode)

    def is_list(self) -> bool:
        """Whether the value is a list."""
        return isinstance(self._node, yaml.SequenceNode)

    def text(self) -> str:
        """Return a text as it stands, quoted or not."""
        if not isinstance(self._node, yaml.ScalarNode) or self._is_none():
            raise self.wrong("a text")
        return str(self._node.value)

    def word(self, known: Sequence[W]) -> W:
        """Return one of a few words."""
        found = self.text()
        for word in known:
            if word == found:
                return word
        raise self.wrong(f"one of {', '.join(known)}; found {found!a}")

    def number(self) -> float:
        """Return a finite number, an int where it is written as one."""
        found = self._plain()
        if found is None or not _NUMBER.fullmatch(found):
            raise self.wrong("a number, as in 10, 0.5 or 1e-5")
        value = int(found) if _WHOLE.fullmatch(found) else float(found)
        if not math.isfinite(value):
            raise self.wrong("a finite number")
        return value

    def whole(self) -> int:
        """Return a whole number."""
        found = self._plain()
        if found is None or not _WHOLE.fullmatch(found):
            raise self.wrong("a whole number")
        return int(found)

    def scalar(self) -> Scalar:
        """Return a number, true, false or null where they stand unquoted, else the text."""
        found = self._plain()
        if found is None:
            return self.text()
        if found in _NONE:
            return None
        if found in ("true", "false"):
            return found == "true"
        return self.number() if _NUMBER.fullmatch(found) else found

    def _plain(self) -> str | None:
        if isinstance(self._node, yaml.ScalarNode) and self._node.style is None:
            return str(self._node.value)
        return None

    def _is_none(self) -> bool:
        return self._plain() in _NONE

    def _below(self, key: str) -> str:
        return f"{self.key}.{key}" if self.key else key


class Source:
    """A file being read: its name, and where each key stands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.marks: dict[str, Any] = {}

    def error(self, mark: Any, what: str) -> PolicyFileError:
        """Return an error at a mark: file:line:column, counted from 1."""
        return PolicyFileError(f"{self.name}:{mark.line + 1}:{mark.column + 1}: {what}")

    def out_of_range(self, error: ValueRangeError) -> PolicyFileError:
        """Return the error at the place of the key that a value's own check names."""
        key = error.key
        while key not in self.marks:
            key = key.rpartition(".")[0]
        return self.error(self.marks[key], error.public_message)

    def read(self, text: str) -> Place:
        """Return the file's one value, under the empty key.

        Raises:
            PolicyFileError: no YAML, too large, too deep, empty, or it uses an anchor or tag.
        """
        if len(text) > MAX_CHARACTERS:
            raise PolicyFileError(f"{self.name}: larger than {MAX_CHARACTERS} characters")
        try:
            node = _Loader(text, self).get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self.error(mark, f"no YAML: {error.problem}") from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise PolicyFileError(f"{self.name}:{line}:1: {error.reason}") from error
        if node is None:
            raise PolicyFileError(f"{self.name}:1:1: the file is empty")
        return Place(self, "", node)


class _Loader(yaml.SafeLoader):
    """Composes nodes and constructs nothing."""

    def __init__(self, text: str, source: Source) -> None:
        super().__init__(text)
        self._source = source
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise self._source.error(event.start_mark, "no anchors or aliases: write the value out")
        if getattr(event, "tag", None) is not None:
            raise self._source.error(event.start_mark, "no tags: write the value alone")
        if self._depth == MAX_DEPTH:
            raise self._source.error(event.start_mark, f"nested deeper than {MAX_DEPTH}")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1
