"""A small, salted picture of whose records a data set holds, to be held against another's. Pure.

Three kinds of feature, each the K smallest hashes of a set (bottom-k sampling; Cohen and Kaplan
2007): names of units; rows, whatever the order of rows and columns; and pairs of a row's values,
whatever their columns are called and whichever others are there. So a subset, an appended or
reordered copy, and a copy with renamed or dropped columns look alike.

Values repeat by chance where there are few. With n records and M equally likely values a share of
about n / 2M repeats within a set, and n / M is shared with an unrelated one: so two sets overlap
only from CHANCE times the share that repeats, and a feature that repeats more than MOST_REPEATS
is left out. Data of few distinct values cannot be told apart.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

K: Final = 4096
SALT_BYTES: Final = 32
MOST_COLUMNS: Final = 24  # of which pairs are made: those with the most values
MOST_REPEATS: Final = 0.2
CHANCE: Final = 4.0
TOP: Final = 2**64 - 1
# Shared by the smaller set, and how many at least, from which two sets are said to overlap.
LEAST_SHARE: Final[Mapping[str, float]] = {"units": 0.01, "rows": 0.01, "pairs": 0.3}
LEAST_SHARED: Final[Mapping[str, int]] = {"units": 1, "rows": 2, "pairs": 16}
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """The K smallest hashes of a set, ascending; all of them where there are fewer.

    `repeats` is the share of its records whose value another has, too.
    """

    hashes: tuple[int, ...]
    repeats: float

    def merged(self, other: Feature | None) -> Feature:
        """Return the feature of both sets together."""
        if other is None:
            return self
        both = sorted({*self.hashes, *other.hashes})
        return Feature(hashes=tuple(both[:K]), repeats=max(self.repeats, other.repeats))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """One lineage's features by kind. Hashes stay at the site, as secret as the data."""

    lineage: str
    features: Mapping[str, Feature]

    def merged(self, other: Sketch) -> Sketch:
        """Return the sketch of both data sets together, as of versions of one lineage."""
        found = dict(other.features)
        for kind, feature in self.features.items():
            found[kind] = feature.merged(found.get(kind))
        return Sketch(lineage=self.lineage, features=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Some records: hashes of their values (records, values), and the names of their units.

    `are_columns`: a place in a record means the same in each. `unique` says, where they are, which
    column numbers the records: it tells nothing of them.
    """

    values: Hashes
    are_columns: bool
    units: Sequence[str]
    unique: Sequence[bool] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two lineages that seem to share `share` of the smaller one's records, by feature `kind`."""

    lineages: tuple[str, str]
    kind: str
    share: float

    def sentence(self) -> str:
        """Say so to the site's administrator."""
        one, other = self.lineages
        return (
            f"lineages '{one}' and '{other}' share about {self.share:.0%} of the {self.kind} of the"
            " smaller: data that may share records shares a lineage. If they do not: site-agent"
            f" ledger acknowledge-overlap {one} {other} --reason TEXT"
        )


def overlap(one: Sketch, other: Sketch) -> Overlap | None:
    """Return how two lineages overlap, by their first feature that says so; None if none does."""
    names = (min(one.lineage, other.lineage), max(one.lineage, other.lineage))
    for kind in LEAST_SHARE:
        mine, theirs = one.features.get(kind), other.features.get(kind)
        if mine is None or theirs is None:
            continue
        # Below this both samples are whole: what one has, the other shows if it has it.
        top = min(found.hashes[-1] if len(found.hashes) == K else TOP for found in (mine, theirs))
        first = {value for value in mine.hashes if value <= top}
        second = {value for value in theirs.hashes if value <= top}
        smaller, shared = min(len(first), len(second)), len(first & second)
        least = max(LEAST_SHARE[kind], CHANCE * max(mine.repeats, theirs.repeats))
        if shared >= LEAST_SHARED[kind] and shared >= least * smaller:
            return Overlap(lineages=names, kind=kind, share=shared / smaller)
    return None


def sketch(lineage: str, read: Iterable[Records], salt: bytes) -> Sketch:
    """Return the sketch of a data set, read in pieces; `salt` (SALT_BYTES,) keys the hashes."""
    keys = np.frombuffer(salt[:16], np.uint64)
    units, rows, count = _Smallest(), _Smallest(), 0
    pairs: dict[tuple[int, int], _Smallest] | None = None
    for records in read:
        units.add(_of_names(sorted(set(records.units)), salt))
        if not len(records.values):
            continue
        count += len(records.values)
        values = _mixed(records.values ^ keys[0])
        rows.add(_mixed(values.sum(axis=1, dtype=np.uint64) ^ keys[1]))
        if pairs is None:
            chosen = _columns(values, records.unique) if records.are_columns else []
            pairs = {pair: _Smallest() for pair in itertools.combinations(chosen, 2)}
        for (i, j), found in pairs.items():
            found.add(_mixed((values[:, i] + values[:, j]) ^ keys[1]))
    features = {
        "rows": rows.feature(count),
        "pairs": _together(list((pairs or {}).values()), count),
    }
    if units.count:
        features["units"] = units.feature(units.count)
    return Sketch(lineage=lineage, features={k: f for k, f in features.items() if f is not None})


def _together(pairs: Sequence[_Smallest], records: int) -> Feature | None:
    """Return one feature of all pairs of columns that tell records apart."""
    found = [pair.feature(records) for pair in pairs]
    telling = [feature for feature in found if feature is not None]
    if not telling:
        return None
    whole = telling[0]
    for feature in telling[1:]:
        whole = whole.merged(feature)
    return whole


class _Smallest:
    """The K smallest of the distinct hashes seen."""

    def __init__(self) -> None:
        self._smallest: Hashes = np.empty(0, np.uint64)

    @property
    def count(self) -> float:
        """About how many distinct hashes there were (exact below K)."""
        if len(self._smallest) < K:
            return float(len(self._smallest))
        return (K - 1) * (float(TOP) / max(1.0, float(self._smallest[-1])))

    def add(self, hashes: Hashes) -> None:
        if len(self._smallest) == K:
            hashes = hashes[hashes < self._smallest[-1]]
        if len(hashes):
            self._smallest = np.unique(np.concatenate([self._smallest, hashes]))[:K]

    def feature(self, records: float) -> Feature | None:
        """Return what was seen in `records` records; None where too many values repeat."""
        if not len(self._smallest):
            return None
        # The count of many is an estimate, good to 1 / sqrt(K).
        near = 0.0 if len(self._smallest) < K else 3 / K**0.5
        repeats = 1 - self.count / records
        repeats = 0.0 if repeats <= near else repeats
        if repeats > MOST_REPEATS:
            return None
        return Feature(hashes=tuple(int(v) for v in self._smallest), repeats=repeats)


def _of_names(names: Sequence[str], salt: bytes) -> Hashes:
    found = [hashlib.blake2b(name.encode(), digest_size=8, key=salt).digest() for name in names]
    return np.frombuffer(b"".join(found), np.uint64)


def _mixed(values: Hashes) -> Hashes:
    """Spread every bit of 64, one to one (SplitMix64; Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


def _columns(values: Hashes, unique: Sequence[bool]) -> list[int]:
    """Return the columns with the most distinct values in a first piece, MOST_COLUMNS at most."""
    counts = {
        i: len(np.unique(column))
        for i, column in enumerate(values.T[: 8 * MOST_COLUMNS])
        if not (unique and unique[i])
    }
    return sorted(sorted(counts, key=lambda i: -counts[i])[:MOST_COLUMNS])
