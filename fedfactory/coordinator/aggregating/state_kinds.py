"""What a strategy may remember: which values can be saved, what they hold, and by what names.

Decides on kinds only; state_encoding.py turns values into plain data.
"""

from __future__ import annotations

import builtins
import enum
import logging
import random
import re
import sys
import threading
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedfactory.coordinator.aggregating.accumulator import AggregationError

SCALARS: Final = (type(None), bool, int, float, str)
MAPPINGS: Final = (
    *(dict, OrderedDict, defaultdict, Counter),
    *(ArrayRecord, ConfigRecord, MetricRecord, RecordDict),
)
_SEQUENCES: Final = (list, tuple, deque)
_OTHERS: Final = (set, frozenset, bytes, np.ndarray, Array)
_GENERATORS: Final = (np.random.Generator, np.random.RandomState, random.Random)
SAVED: Final = (*SCALARS, *MAPPINGS, *_SEQUENCES, *_OTHERS, *_GENERATORS)

_COPIED: Final = (*SCALARS, bytes, np.ndarray, Array)  # new after a resume, whoever made them
UNSEEN: Final = "whose changes nobody can see"

# What construction makes anew and nothing changes: code, names, constants, locks.
_OPAQUE: Final[tuple[type, ...]] = (
    *(type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType),
    *(logging.Logger, enum.Enum, PurePath, re.Pattern, np.dtype, np.ufunc),
    *(type(threading.Lock()), type(threading.RLock())),
)
_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: not one of the interpreter's own static types


def is_opaque(value: object) -> bool:
    """Whether a value is taken from construction, as functions, classes and locks are."""
    if isinstance(value, _OPAQUE) or type(value) is object:
        return True
    return type(value) not in SAVED and not is_plain(value) and callable(value)


def is_plain(value: object) -> bool:
    """Whether an object is all told by its attributes: its class is Python's, down to `object`."""
    cls = type(value)
    if cls in SAVED or isinstance(value, (*_OPAQUE, np.generic)):
        return False
    new: Any = cls.__new__
    own = all(base is object or base.__flags__ & _HEAP_TYPE for base in cls.__mro__)
    slotted = any("__slots__" in base.__dict__ for base in cls.__mro__)
    return (
        own
        and (new is object.__new__ or isinstance(new, types.FunctionType))
        and (slotted or hasattr(value, "__dict__"))
    )


def attributes(value: object) -> dict[str, Any]:
    """Return an object's attributes: those in its dictionary, then those in slots."""
    found = dict(getattr(value, "__dict__", {}))
    for name in _slots(type(value)):
        if hasattr(value, name):
            found[name] = getattr(value, name)
    return found


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
        for name, member in base.__dict__.items():
            if isinstance(member, types.MemberDescriptorType):
                yield name


def parts(value: object, where: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, part) over what a value holds; `where` is Python's way to reach it."""
    if type(value) in MAPPINGS:
        for key, item in value.items():  # type: ignore[attr-defined]
            yield f"{where}[{key!r}]", item
    elif type(value) in _SEQUENCES:
        for number, item in enumerate(value):  # type: ignore[arg-type]
            yield f"{where}[{number}]", item
    elif is_plain(value):
        for name, item in attributes(value).items():
            yield f"{where}.{name}", item


class Origin:
    """What construction made, by where it lies; the objects are kept, so that identities hold."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._objects: dict[str, object] = {}
        self._where: dict[int, str] = {}
        for name, value in root.items():
            self._note(name, value)

    def _note(self, where: str, value: object) -> None:
        if type(value) in _COPIED or isinstance(value, np.generic) or id(value) in self._where:
            return
        if not (type(value) in SAVED or is_plain(value) or is_opaque(value)):
            raise unsavable(where, value, UNSEEN)
        self._objects[where] = value
        self._where[id(value)] = where
        for at, part in parts(value, where):
            self._note(at, part)

    def where(self, value: object) -> str | None:
        """Return where construction put this very object, or None: it was made later."""
        return self._where.get(id(value))

    def at(self, where: str) -> object:
        """Return what construction put there.

        Raises:
            KeyError: nothing.
        """
        return self._objects[where]


def name_of(value: Callable[..., Any]) -> str:
    """Return a class's 'module:name', for `class_named`."""
    return f"{value.__module__}:{value.__qualname__}"


def class_named(name: str) -> type | None:
    """Return the class of that name if its module is imported already; nothing is imported."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def factory_named(name: str | None) -> Callable[[], Any] | None:
    """Return a defaultdict's factory, one of Python's own types by name; None for none."""
    if name is None:
        return None
    found = getattr(builtins, name)
    if not isinstance(found, type):
        raise TypeError(name)
    return found


def unsavable(where: str, value: object, why: str) -> AggregationError:
    """Return the error that names what cannot be saved, and the two ways out."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return AggregationError(
        f"{where} holds a {kind}, {why}, so the run could not be resumed; keep numbers, text,"
        " containers and dataclasses of them and NumPy arrays there, or define state_dict() and"
        " load_state_dict(state) (docs/researcher.md)"
    )
