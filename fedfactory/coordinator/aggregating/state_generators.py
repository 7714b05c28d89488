"""Random generators by their state: NumPy's, old and new, and Python's."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

import numpy as np


def demand(holds: bool, what: str) -> None:
    """Raise ValueError(what) unless it holds: data of another form."""
    if not holds:
        raise ValueError(what)


def _drawn(generator: np.random.Generator) -> dict[str, Any]:
    seed = generator.bit_generator.seed_seq
    told = None
    if isinstance(seed, np.random.SeedSequence):  # what spawn() goes on from
        told = (seed.entropy, tuple(seed.spawn_key), seed.pool_size, seed.n_children_spawned)
    return {"bits": dict(generator.bit_generator.state), "seed": told}


def _new_generator(state: dict[str, Any]) -> np.random.Generator:
    seed = None
    if state["seed"] is not None:
        entropy, spawn_key, pool_size, spawned = state["seed"]
        seed = np.random.SeedSequence(
            entropy, spawn_key=spawn_key, pool_size=pool_size, n_children_spawned=spawned
        )
    return np.random.Generator(_bits(state["bits"]["bit_generator"])(seed))


def _seed_generator(generator: np.random.Generator, state: dict[str, Any]) -> None:
    generator.bit_generator.state = state["bits"]
    seed = generator.bit_generator.seed_seq
    if isinstance(seed, np.random.SeedSequence) and state["seed"] is not None:
        seed.spawn(state["seed"][3] - seed.n_children_spawned)


def _bits(name: str) -> Callable[..., np.random.BitGenerator]:
    found = getattr(np.random, name)
    demand(isinstance(found, type) and issubclass(found, np.random.BitGenerator), f"bits {name}")
    return found  # type: ignore[no-any-return]


STATES: Final[dict[type, Callable[[Any], Any]]] = {
    np.random.Generator: _drawn,
    np.random.RandomState: lambda generator: generator.get_state(legacy=False),
    random.Random: random.Random.getstate,
}
SET_STATE: Final[dict[str, Callable[[Any, Any], None]]] = {
    "Generator": _seed_generator,
    "RandomState": np.random.RandomState.set_state,
    "Random": random.Random.setstate,
}
NEW: Final[dict[str, Callable[[Any], Any]]] = {
    "Generator": _new_generator,
    "RandomState": lambda state: np.random.RandomState(_bits(state["bit_generator"])()),
    "Random": lambda state: random.Random(0),  # noqa: ARG005, S311  a strategy's draws, no secrets
}
