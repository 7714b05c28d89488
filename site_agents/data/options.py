"""The options that a site's configuration gives a data source, read into a dataclass of its kind.

A field without a default must be given; a key that the kind does not know is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from fedfactory.contracts.codec import decode
from fedfactory.contracts.errors import ProtocolError, UnknownNameError, UsageError, ValueRangeError

T = TypeVar("T")
# Read by whoever opens a source, not by its kind.
OUTER: Final = ("kind",)


def read_options(cls: type[T], name: str, options: Mapping[str, Any]) -> T:
    """Return the options of source `name` as a `cls`.

    Raises:
        UsageError: a key that is missing or not known, a value of the wrong type; names
            data.<name>.<key>.
    """
    return read_fields(cls, f"data.{name}", {k: v for k, v in options.items() if k not in OUTER})


def read_fields(cls: type[T], where: str, values: Mapping[str, Any]) -> T:
    """Return `values` as a `cls`, a frozen dataclass; `where` names them in the error."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UnknownNameError("key", f"{where}.{key}", (f"{where}.{name}" for name in fields))
    filled = {}
    for key, field in fields.items():
        if key in values:
            filled[key] = values[key]
        elif field.default is not dataclasses.MISSING:
            filled[key] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            filled[key] = field.default_factory()
        else:
            raise UsageError(f"{where}.{key}: no value and no default")
    try:
        return decode(cls, _plain(filled))
    except ProtocolError as error:
        raise UsageError(f"{where}: {error.public_message.removeprefix(cls.__name__)}") from error


def absolute_path(name: str, text: str) -> Path:
    """Return the path of source `name`; relative ones would depend on who starts the agent.

    Raises:
        ValueRangeError: it is relative.
    """
    path = Path(text)
    if not path.is_absolute():
        raise ValueRangeError(f"data.{name}.path", repr(text), "an absolute path")
    return path


def _plain(value: Any) -> Any:
    """YAML has keys that are numbers, a dataclass tuples; JSON's forms have neither."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
