"""Which finished updates are kept: each run's newest, bounded by runs and by the disk."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedfactory.privacy.entries import RunKey
from site_agents.spool import KEEP_OF_RUN, KEEP_RUNS, Kept, superfluous

ROOMY = 10**9


def kept(name: str, run: int, written: float, size: int = 1) -> Kept:
    key = RunKey(coordinator="hub", run_id=f"run-{run}")
    return Kept(name=name, run=key, written=written, size_bytes=size)


def test_a_busy_run_does_not_push_out_anothers_update():
    quiet = kept("quiet", 1, 0.0)
    busy = [kept(f"busy-{n}", 2, 1.0 + n) for n in range(20)]
    gone = superfluous([quiet, *busy], ROOMY)
    assert "quiet" not in gone
    assert len(busy) - len(gone) == KEEP_OF_RUN
    assert f"busy-{19}" not in gone


def test_only_so_many_runs():
    found = [kept(f"of-{n}", n, float(n)) for n in range(KEEP_RUNS + 3)]
    assert superfluous(found, ROOMY) == {"of-0", "of-1", "of-2"}


def test_where_the_disk_is_small_each_runs_newest_is_kept_first():
    found = [kept(f"{run}-{n}", run, 10.0 * run + n, 100) for run in (1, 2) for n in range(4)]
    assert {one.name for one in found} - superfluous(found, 250) == {"1-3", "2-3"}
    assert {one.name for one in found} - superfluous(found, 0) == {"2-3"}, "never nothing at all"


@given(
    st.lists(st.tuples(st.integers(0, 12), st.floats(0, 100), st.integers(0, 1000)), max_size=60),
    st.integers(0, 20_000),
)
def test_what_is_kept_keeps_the_bounds(entries: list[tuple[int, float, int]], most: int):
    found = [kept(str(n), run, at, size) for n, (run, at, size) in enumerate(entries)]
    gone = superfluous(found, most)
    left = [one for one in found if one.name not in gone]
    assert len(left) <= KEEP_RUNS * KEEP_OF_RUN
    assert sum(one.size_bytes for one in left) <= most or len(left) <= 1
    assert bool(left) == bool(found)
