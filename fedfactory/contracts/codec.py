"""Strict JSON forms of frozen dataclasses: every field present, none unknown, every type checked.

One codec serves orders, updates, events and job files, so that what is written is what is read.
Floats must be finite: NaN has no JSON form and no place in an order. Bounds stand in the types
(bounds.py) and are checked here.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
from collections.abc import Callable, Mapping
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from fedfactory.contracts.bounds import forbidden
from fedfactory.contracts.errors import FedfactoryError, FieldError, ProtocolError

T = TypeVar("T")
_SCALARS: Final = frozenset((str, int, float, bool, type(None)))
_MOST_NAMES: Final = 8
_MOST_NAME: Final = 64  # characters
_MOST_DIGITS: Final = 32  # of a whole number; any type that is bounded allows fewer


def encode(value: Any) -> Any:
    """Return the JSON-ready form of a dataclass, mapping, tuple or scalar."""
    kind: Any = type(value)
    if kind in _SCALARS:
        return value
    if (names := _names(kind)) is not None:
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


@functools.cache
def _names(kind: Any) -> tuple[str, ...] | None:
    """Return the names of a dataclass's fields, None for any other class."""
    if not dataclasses.is_dataclass(kind):
        return None
    return tuple(field.name for field in dataclasses.fields(kind))


_text = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def to_json(value: Any) -> str:
    """Return canonical JSON: sorted keys, no spaces, no NaN. Equal values give equal text."""
    return _text(encode(value))


def digest_of(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON, as 'sha256:<hex>'."""
    return "sha256:" + hashlib.sha256(to_json(value).encode()).hexdigest()


def from_json(cls: type[T], text: str | bytes) -> T:
    """Parse JSON into `cls`.

    Raises:
        FieldError: a missing or unknown field, or a value of the wrong type or out of its bound.
        ProtocolError: not JSON.
    """
    try:
        raw = json.loads(text, parse_int=_whole)  # NaN is refused by its field
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{cls.__name__}: not JSON", diagnostic=str(error)) from error
    return decode(cls, raw)


def json_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object, of which nothing else is checked. Raises ProtocolError."""
    try:
        raw = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("not JSON", diagnostic=str(error)) from error
    if not isinstance(raw, dict):
        raise ProtocolError("not a JSON object")
    return raw


def decode(cls: type[T], raw: Any) -> T:
    """Build `cls` from its JSON-ready form, checking names and types of every field.

    Raises:
        FieldError: a missing or unknown field, or a value of the wrong type or out of its bound.
    """
    result: T = _decode(cls, raw, cls.__name__)
    return result


def _whole(digits: str) -> int | float:
    """Read a whole number; of one that no field takes only the size is read, whatever its length.

    Reading n digits exactly costs n squared, and Python refuses above 4,300 without naming a field.
    """
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _decode(kind: Any, raw: Any, where: str) -> Any:
    return _way(kind)(kind, raw, where)


@functools.cache
def _way(kind: Any) -> Callable[[Any, Any, str], Any]:
    """Return how values of a type are decoded."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _decode_bounded
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass
    if origin in (Union, types.UnionType):
        return _decode_union
    if origin is Literal:
        return _decode_literal
    return _decode_many if origin else _decode_scalar


def _decode_literal(kind: Any, raw: Any, where: str) -> Any:
    if any(raw == option and type(raw) is type(option) for option in get_args(kind)):
        return raw
    raise forbidden(where, f"one of {get_args(kind)}", raw)


def _decode_many(kind: Any, raw: Any, where: str) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(raw, list):
            raise forbidden(where, "a list", raw)
        item = get_args(kind)[0]
        decode_item = _way(item)
        return tuple([decode_item(item, value, f"{where}[{i}]") for i, value in enumerate(raw)])
    assert issubclass(get_origin(kind), Mapping), f"{where}: no form for {kind}"
    if not isinstance(raw, dict):
        raise forbidden(where, "an object", raw)
    name, item = get_args(kind)
    return {
        _decode(name, key, where): _decode(item, value, f"{where}.{_shown(key)}")
        for key, value in raw.items()
    }


def _decode_bounded(kind: Any, raw: Any, where: str) -> Any:
    inner, *bounds = get_args(kind)
    if inner in (int, float, str) and not _is_of(inner, raw):
        raise forbidden(where, f"{bounds[0]}", raw)
    value = _decode(inner, raw, where)
    for bound in bounds:
        if not bound.admits(value):
            raise forbidden(where, str(bound), raw)
    return value


def _is_of(kind: type, raw: Any) -> bool:
    return type(raw) is kind or (kind is float and type(raw) is int)


def _shown(key: str) -> str:
    """Return a name of the sender's choice, so that it cannot write a line of its own in a log."""
    return ascii(key[:_MOST_NAME])[1:-1]


def _decode_scalar(kind: Any, raw: Any, where: str) -> Any:
    if isinstance(raw, float) and not math.isfinite(raw):
        raise forbidden(where, "a finite number", raw)
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        try:
            number = float(raw)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise forbidden(where, "a finite number", raw)
        return number
    if kind is type(None) and raw is None:
        return None
    if kind is str and type(raw) is str and not _is_text(raw):
        raise forbidden(where, "Unicode text", raw)
    if kind is Any or (kind in (str, int, bool) and type(raw) is kind):
        return raw
    raise forbidden(where, getattr(kind, "__name__", str(kind)), raw)


def _is_text(text: str) -> bool:
    """Whether a text can be written at all: JSON's escapes can name half of a pair (U+D800)."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _decode_union(kind: Any, raw: Any, where: str) -> Any:
    options = get_args(kind)
    # Exact scalar types first, so that 1 stays an int under `int | float`.
    for option in options:
        core = get_args(option)[0] if get_origin(option) is Annotated else option
        if type(raw) is core:
            return _decode(option, raw, where)
    others = [option for option in options if option is not type(None)]
    if len(others) == 1:  # an optional value: say what its own type expects
        return _decode(others[0], raw, where)
    for option in options:
        try:
            return _decode(option, raw, where)
        except ProtocolError:
            continue
    raise forbidden(where, " or ".join(getattr(o, "__name__", str(o)) for o in options), raw)


# Looked up once for each class: a ledger's thousands of entries are of eight.
@functools.cache
def _fields(cls: Any) -> dict[str, tuple[Any, Callable[[Any, Any, str], Any]]]:
    """Return the type of each field, and how it is decoded."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: (hints[name], _way(hints[name])) for name in _names(cls) or ()}


def _decode_dataclass(cls: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise forbidden(where, "an object", raw)
    fields = _fields(cls)
    if missing := sorted(fields.keys() - raw.keys()):
        raise FieldError(f"{where}: missing {', '.join(missing)}")
    if unknown := sorted(raw.keys() - fields.keys()):
        told = ", ".join(map(_shown, unknown[:_MOST_NAMES]))
        raise FieldError(f"{where}: expected its own fields alone", f"unknown {told}")
    values = {
        name: decode_field(kind, raw[name], f"{where}.{name}")
        for name, (kind, decode_field) in fields.items()
    }
    try:
        return cls(**values)
    except FieldError:
        raise
    except FedfactoryError as error:  # what its fields must be together
        raise FieldError(f"{where}: {error.public_message}") from error
