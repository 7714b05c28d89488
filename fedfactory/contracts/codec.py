"""Strict JSON forms of frozen dataclasses: every field present, none unknown, every type checked.

One codec serves orders, updates, events and job files, so that what is written is what is read.
Floats must be finite: NaN has no JSON form and no place in an order.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fedfactory.contracts.errors import ProtocolError

T = TypeVar("T")
_MOST_NAMES: Final = 8
_MOST_NAME: Final = 64  # characters


def encode(value: Any) -> Any:
    """Return the JSON-ready form of a dataclass, mapping, tuple or scalar."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def to_json(value: Any) -> str:
    """Return canonical JSON: sorted keys, no spaces, no NaN. Equal values give equal text."""
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON, as 'sha256:<hex>'."""
    return "sha256:" + hashlib.sha256(to_json(value).encode()).hexdigest()


def from_json(cls: type[T], text: str | bytes) -> T:
    """Parse JSON into `cls`.

    Raises:
        ProtocolError: not JSON, a missing or unknown field, or a value of the wrong type.
    """
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{cls.__name__}: not JSON", diagnostic=str(error)) from error
    return decode(cls, raw)


def decode(cls: type[T], raw: Any) -> T:
    """Build `cls` from its JSON-ready form, checking names and types of every field.

    Raises:
        ProtocolError: a missing or unknown field, or a value of the wrong type.
    """
    result: T = _decode(cls, raw, cls.__name__)
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _fail(where: str, found: Any, expected: str) -> ProtocolError:
    return ProtocolError(f"{where}: expected {expected}, found {type(found).__name__}")


def _decode(kind: Any, raw: Any, where: str) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, raw, where)
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(kind), raw, where)
    if origin is Literal:
        if any(raw == option and type(raw) is type(option) for option in get_args(kind)):
            return raw
        raise _fail(where, raw, f"one of {get_args(kind)}")
    if origin is tuple:
        if not isinstance(raw, list):
            raise _fail(where, raw, "a list")
        item = get_args(kind)[0]
        return tuple(_decode(item, value, f"{where}[{i}]") for i, value in enumerate(raw))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(raw, dict):
            raise _fail(where, raw, "an object")
        if not all(map(_is_text, raw)):
            raise _fail(where, raw, "keys of Unicode text")
        item = get_args(kind)[1]
        return {key: _decode(item, value, f"{where}.{key}") for key, value in raw.items()}
    return _decode_scalar(kind, raw, where)


def _decode_scalar(kind: Any, raw: Any, where: str) -> Any:
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        try:
            number = float(raw)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise _fail(where, raw, "a finite number")
        return number
    if kind is type(None) and raw is None:
        return None
    if kind is str and type(raw) is str and not _is_text(raw):
        raise _fail(where, raw, "Unicode text")
    if kind is Any or (kind in (str, int, bool) and type(raw) is kind):
        return raw
    raise _fail(where, raw, getattr(kind, "__name__", str(kind)))


def _is_text(text: str) -> bool:
    """Whether a text can be written at all: JSON's escapes can name half of a pair (U+D800)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decode_union(options: tuple[Any, ...], raw: Any, where: str) -> Any:
    # Exact scalar types first, so that 1 stays an int under `int | float`.
    for option in options:
        if type(raw) is option:
            return _decode(option, raw, where)
    for option in options:
        try:
            return _decode(option, raw, where)
        except ProtocolError:
            continue
    raise _fail(where, raw, " or ".join(getattr(o, "__name__", str(o)) for o in options))


# Told once for each class: a ledger's thousands of entries are of eight.
_hints = functools.cache(get_type_hints)


def _decode_dataclass(cls: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise _fail(where, raw, "an object")
    hints = _hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    if missing := sorted(names - raw.keys()):
        raise ProtocolError(f"{where}: missing {', '.join(missing)}")
    if unknown := sorted(raw.keys() - names):
        # Whoever wrote them may want a line of their own in somebody's log.
        told = ", ".join(ascii(name[:_MOST_NAME])[1:-1] for name in unknown[:_MOST_NAMES])
        raise ProtocolError(f"{where}: unknown {told}")
    values = {name: _decode(hints[name], raw[name], f"{where}.{name}") for name in names}
    return cls(**values)
