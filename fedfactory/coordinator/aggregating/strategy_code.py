"""What a strategy has besides data: code and constants, attributes, classes. No IO.

Code and constants are not saved: after a resume the constructor makes them anew. So no data may
hide in them.
"""

from __future__ import annotations

import enum
import logging
import re
import types
from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import PurePath
from typing import Any, Final

import numpy as np

_CONSTANTS: Final[tuple[type, ...]] = (
    *(type, types.ModuleType, logging.Logger, enum.Enum, PurePath, re.Pattern, np.dtype, np.ufunc),
    type(np.mean),
)
_SCALARS: Final = (type(None), bool, int, float, complex, str, bytes)
_MAX_DEPTH: Final = 8
CODE: Final = (*_CONSTANTS, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


def kept_by(code: object, strategy: object) -> object | None:
    """Return data that a function of the strategy's keeps for itself, or None.

    It may be in a closure, a default, an attribute of the function, or the object of a method.
    """
    seen: list[object] = [strategy]
    todo = [code]
    while todo:
        found: Any = todo.pop()
        if any(known is found for known in seen):
            continue
        seen.append(found)
        match found:
            case types.FunctionType():
                todo += [*_closure(found), *(found.__defaults__ or ()), *vars(found).values()]
                todo += (found.__kwdefaults__ or {}).values()
            case types.MethodType():
                todo += [found.__self__, found.__func__]
            case types.BuiltinFunctionType():
                todo.append(found.__self__)
            case tuple():
                todo += found
            case _ if type(found) not in _SCALARS and not isinstance(found, _CONSTANTS):
                return found  # type: ignore[no-any-return]
    return None


def _closure(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def attributes(value: object) -> dict[str, Any]:
    """Return an object's attributes, sorted by name: of its dictionary and of slots."""
    found = dict(getattr(value, "__dict__", {}))
    found |= {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
    return dict(sorted(found.items()))


def set_attributes(value: object, wanted: dict[str, Any]) -> None:
    """Give an object exactly these attributes, also where its class lets nobody set any."""
    slots = set(_slots(type(value)))
    for name in attributes(value).keys() - wanted.keys():
        object.__delattr__(value, name)
    for name, item in wanted.items():
        if name in slots:
            object.__setattr__(value, name, item)
        else:
            value.__dict__[name] = item


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        for name, member in vars(base).items():
            if isinstance(member, types.MemberDescriptorType):
                yield name


def class_data(cls: type) -> dict[str, Any]:
    """Return the data that a strategy's classes share, by 'Class.name'.

    That is attributes, and what their functions have as defaults and attributes.
    """
    return {
        f"{base.__name__}.{name}": _plain(found)
        for base in cls.__mro__
        for name, found in vars(base).items()
        if not name.startswith("__")
    }


def _plain(value: Any, deep: int = 0) -> Any:
    """Return containers as lists and dicts, whatever their class; the rest as it is."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    match value:
        case _ if deep == _MAX_DEPTH:
            return value
        case types.FunctionType():
            kept = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
            return [_plain(kept, deep + 1), _plain(vars(value), deep + 1)]
        case Mapping():
            return [[_plain(one, deep + 1) for one in pair] for pair in value.items()]
        case AbstractSet():
            return sorted(repr(_plain(one, deep + 1)) for one in value)
        case list() | tuple() | deque():
            return [_plain(one, deep + 1) for one in value]
    return value


def kept_scalars(code: object) -> str:
    """Return what a function keeps in its closure and as attributes, apart from other data.

    Text and numbers there are no data until they change.
    """
    if isinstance(code, types.MethodType):
        code = code.__func__
    if not isinstance(code, types.FunctionType):
        return ""
    return repr([found for found in _changing(code) if type(found) in _SCALARS])


def _changing(function: types.FunctionType) -> Iterator[object]:
    yield from _closure(function)
    yield from vars(function).values()
