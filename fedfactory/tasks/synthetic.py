"""Generated tables to try a task with: seeded, with something in them to learn.

What depends on what is drawn from the columns' names alone, so that the tables of different sites
and seeds follow one rule, and a federation of them learns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.tasks.columns import Categorical, Label, Scaled
from fedfactory.tasks.seeds import derive_seed

Numbers = NDArray[np.float64]
LABEL_NOISE: Final = 0.3
LIFE: Final = (120, 240)  # readings from new to worn out
SENSOR_NOISE: Final = 0.4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """Rows of sensors x (rows, sensors) and raw labels y, by machine `unit` and time `order`."""

    x: Numbers
    y: Numbers | NDArray[np.int64]
    unit: NDArray[np.int64]
    order: Numbers


def synthetic_rows(
    numeric: Sequence[Scaled],
    categorical: Sequence[Categorical],
    label: Label,
    rows: int,
    seed: int,
) -> tuple[Numbers, Numbers | NDArray[np.int64]]:
    """Return x (rows, columns), numbers then categories as indices, and y, raw.

    Numbers are normal at their centre and scale, categories uniform; the label follows from a
    random linear rule with a little noise.
    """
    generator = np.random.default_rng(derive_seed(seed, "synthetic rows"))
    z = generator.standard_normal((rows, len(numeric)))
    chosen = [generator.integers(len(c.categories), size=rows) for c in categorical]
    ones = [np.eye(len(c.categories))[k] for c, k in zip(categorical, chosen, strict=True)]
    inputs = np.concatenate([z, *ones], axis=1)
    names = [column.name for column in (*numeric, *categorical, label)]
    rule = np.random.default_rng(derive_seed("synthetic rule", *names))
    outputs = 1 if isinstance(label, Scaled) else len(label.names)
    scores = inputs @ rule.standard_normal((inputs.shape[1], outputs))
    scores /= np.sqrt(len(names) - 1)
    scores += LABEL_NOISE * generator.standard_normal(scores.shape)
    numbers = z * [c.scale for c in numeric] + [c.centre for c in numeric]
    x = np.concatenate([numbers, *(k[:, None].astype(np.float64) for k in chosen)], axis=1)
    if isinstance(label, Scaled):
        return x, label.centre + label.scale * scores[:, 0]
    return x, scores.argmax(axis=1)


def synthetic_readings(
    sensors: Sequence[Scaled], label: Label, machines: int, seed: int
) -> Readings:
    """Return readings of machines that wear out, each from new to the end of its life.

    A sensor drifts with the square of the life spent, more or less strongly. A class counts how far
    the wear has come; a number falls from centre + scale, new, to centre - scale.
    """
    generator = np.random.default_rng(derive_seed(seed, "synthetic readings"))
    rule = np.random.default_rng(derive_seed("synthetic wear", *(s.name for s in sensors)))
    drift = rule.uniform(1.0, 3.0, len(sensors)) * rule.choice([-1.0, 1.0], len(sensors))
    centres = np.array([s.centre for s in sensors])
    scales = np.array([s.scale for s in sensors])
    lives = generator.integers(*LIFE, size=machines)
    unit = np.repeat(np.arange(machines), lives)
    order = np.concatenate([np.arange(life, dtype=np.float64) for life in lives])
    spent = (order + 1) / np.repeat(lives, lives)
    z = drift * spent[:, None] ** 2 + SENSOR_NOISE * generator.standard_normal(
        (len(unit), len(sensors))
    )
    z += 0.2 * generator.standard_normal((machines, len(sensors)))[unit]
    x = centres + scales * z
    if isinstance(label, Scaled):
        y: Numbers | NDArray[np.int64] = label.centre + label.scale * (1 - 2 * spent)
    else:
        top = len(label.names) - 1
        y = np.minimum(top, np.floor(len(label.names) * spent**2)).astype(np.int64)
    return Readings(x=x, y=y, unit=unit.astype(np.int64), order=order)
