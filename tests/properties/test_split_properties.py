"""The split of a lineage: fixed, by unit, and no record has a say in another's side."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.privacy.sampling import EVALUATION_SHARE
from site_agents.data.split import Split

LINEAGES = st.text(max_size=20)
RECORDS = [5, 9, 14, 16, 24]
UNITS_OF_COHORT = ["c"]
UNITS = st.lists(st.text(max_size=8), max_size=60)


@given(lineage=LINEAGES, units=UNITS, cut=st.integers(0, 60))
@settings(deadline=None)
def test_a_units_side_is_its_own(lineage: str, units: list[str], cut: int) -> None:
    sides = dict(zip(units, Split(lineage).tests_of_units(units).tolist(), strict=True))
    other = Split(lineage)
    pieces = [other.tests_of_units(units[cut:]), other.tests_of_units(units[:cut])]
    again = dict(zip(units[cut:] + units[:cut], np.concatenate(pieces).tolist(), strict=True))
    assert sides == again
    alone = {unit: bool(Split(lineage).tests_of_units([unit])[0]) for unit in set(units)}
    assert sides == alone


@given(lineage=LINEAGES, sizes=st.lists(st.integers(0, 50), max_size=10), more=st.integers(0, 50))
@settings(deadline=None)
def test_a_records_side_is_its_numbers(lineage: str, sizes: list[int], more: int) -> None:
    """However it is read in pieces, and whatever comes after it."""
    whole = Split(lineage).tests_of_records(sum(sizes) + more)
    split = Split(lineage)
    pieces = [split.tests_of_records(size) for size in sizes]
    assert np.array_equal(np.concatenate([*pieces, []]), whole[: sum(sizes)])


def test_its_share_is_what_the_ledger_counts_on() -> None:
    tests = Split("lineage").tests_of_records(100_000)
    assert abs(tests.mean() - EVALUATION_SHARE) < 0.01
    tests = Split("lineage").tests_of_units([str(i) for i in range(20_000)])
    assert abs(tests.mean() - EVALUATION_SHARE) < 0.02


def test_the_split_of_a_known_lineage() -> None:
    """Written down: it may not change with a release, or test records would be trained on."""
    split = Split("cohort")
    assert np.flatnonzero(split.tests_of_records(30)).tolist() == RECORDS
    assert [u for u in "abcdefghijklmnop" if split.tests_of_units([u])[0]] == UNITS_OF_COHORT
