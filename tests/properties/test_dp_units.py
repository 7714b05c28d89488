"""Drawing units: each once at most, each unit's rows evenly, one row a unit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.privacy.units import Units
from tests.private_descents import fresh_source

names = st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 3), max_size=40)


@given(unit=names)
@settings(deadline=None)
def test_one_row_of_each_unit(unit: list[int]) -> None:
    column = np.array(unit, np.int64)
    rows = Units(len(column), column).one_row_each(fresh_source())
    assert sorted(column[rows].tolist()) == sorted(set(unit))


@given(unit=names, rate=st.floats(0, 1))
@settings(deadline=None)
def test_a_sample_holds_no_unit_twice(unit: list[int], rate: float) -> None:
    column = np.array(unit, np.int64)
    units = Units(len(column), column)
    drawn = column[units.sample(fresh_source(), rate)].tolist()
    assert len(drawn) == len(set(drawn))
    assert len(units) == len(set(unit))


@given(rows=st.integers(0, 30), rate=st.floats(0, 1))
@settings(deadline=None)
def test_without_units_each_row_is_one(rows: int, rate: float) -> None:
    units = Units(rows, None)
    assert units.one_row_each(fresh_source()).tolist() == list(range(rows))
    drawn = units.sample(fresh_source(), rate).tolist()
    assert drawn == sorted(set(drawn))
    assert all(0 <= row < rows for row in drawn)


def test_a_large_unit_is_drawn_no_more_often_than_a_small_one() -> None:
    column = np.array([0] * 50 + [1], np.int64)
    units, source = Units(51, column), fresh_source()
    hits = np.zeros(2)
    for _ in range(4000):
        hits[column[units.sample(source, 0.3)]] += 1
    assert np.all(abs(hits - 1200) < 5 * (4000 * 0.3 * 0.7) ** 0.5)
