"""How local mode splits data: disjoint, complete, reproducible, large enough; all of a unit at one.

What files may hold is tested in tests/unit/test_data_bad_input.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.choices import values_of
from fedfactory.contracts.errors import DataError, UsageError
from fedfactory.tasks.table import load_task
from site_agents.data.local_share import describe_shares
from site_agents.data.partition import MIN_EXAMPLES, split, train_and_test
from site_agents.data.sources import open_source

PARTITIONS = [
    {"kind": "iid", "alpha": None, "labels_per_site": None},
    {"kind": "dirichlet", "alpha": 0.3, "labels_per_site": None},
    {"kind": "labels", "alpha": None, "labels_per_site": 4},
]


@given(
    seed=st.integers(0, 2**62),
    count=st.integers(2, 6),
    partition=st.sampled_from(PARTITIONS),
    total=st.integers(300, 800),
)
@settings(deadline=None, max_examples=60)
def test_shares_are_disjoint_and_reproducible(seed, count, partition, total) -> None:
    labels = np.random.default_rng(seed).integers(0, 10, total)
    sites = [f"s{i}" for i in range(count)]
    try:
        shares = split(labels, sites, partition, seed)
    except DataError:
        return  # the draw starves a site; test_a_starving_site_is_named sees that it is said
    together = np.concatenate(list(shares.values()))
    assert len(np.unique(together)) == len(together) <= total
    if partition["kind"] != "labels":
        assert len(together) == total
    assert all(len(share) >= MIN_EXAMPLES for share in shares.values())
    again = split(labels, sites[::-1], partition, seed)
    assert all(np.array_equal(shares[s], again[s]) for s in sites)
    for site, share in shares.items():
        train, test = train_and_test(share, site, seed)
        assert np.array_equal(np.sort(np.concatenate([train, test])), share)


def test_a_starving_site_is_named() -> None:
    with pytest.raises(DataError, match=r"site s[01] would hold"):
        split(np.repeat([0, 1], [100, 3]), ["s0", "s1"], {**PARTITIONS[2], "labels_per_site": 1}, 1)


def test_labels_gives_each_site_its_number_of_classes() -> None:
    labels = np.repeat(np.arange(10), 50)
    shares = split(labels, ["a", "b", "c"], PARTITIONS[2], 1)
    assert {len(np.unique(labels[share])) for share in shares.values()} == {4}


def _parameters(task: str, **changed: str) -> dict[str, Any]:
    written = values_of("task", task).items()
    return {k: v for k, v in written if k not in ("name", "data")} | changed


def _options(task: str, partition: dict[str, Any], site: str = "a", path: Any = None) -> Any:
    return {
        "kind": "partition",
        "task": task,
        "path": path,
        "partition": partition,
        "sites": ["a", "b", "c"],
        "site": site,
        "seed": 1,
    }


CASES = [
    ("digits", {}),
    ("breast_cancer", {}),
    ("tabular", {}),
    ("tabular", {"kind": "regression", "label": "cost:1000:500"}),
    ("timeseries", {}),
    ("timeseries", {"kind": "regression", "label": "life:100:50"}),
]


@pytest.mark.parametrize("partition", [PARTITIONS[0], {**PARTITIONS[1], "alpha": 1.0}])
@pytest.mark.parametrize(("name", "changed"), CASES)
def test_the_shares_of_a_tasks_own_data(name: str, changed: Any, partition: Any) -> None:
    task, parameters = load_task(name), _parameters(name, **changed)
    whole = task.bundled(parameters)
    described = {s.site: s for s in describe_shares(_options(name, partition), task, parameters)}
    rows: list[bytes] = []
    for site in "abc":
        options = _options(name, partition, site)
        data = open_source("share", options, "share").load(task, parameters)
        share = described[site]
        assert (share.train, share.test) == (len(data.train), len(data.test))
        assert sum(share.labels.values()) == share.train + share.test
        rows += [row.tobytes() for part in (data.train, data.test) for row in part.x]
        units = [set(u.tolist()) for p in (data.train, data.test) if (u := p.unit) is not None]
        assert not units or (len(units[0] | units[1]) == share.units and not units[0] & units[1])
        assert bool(units) == (name == "timeseries")
    assert sorted(rows) == sorted(row.tobytes() for row in whole.x)


def test_a_share_of_a_file_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    x = np.random.default_rng(1).random((200, 64)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(200) % 10)
    source = open_source("share", _options("digits", PARTITIONS[0], path=str(path)), "share")
    before, stamp = source.version(), source.stamp()
    assert before == source.version()
    np.savez(path, x=x[:150], y=np.arange(150) % 10)
    assert source.version() != before
    assert source.stamp() != stamp
    shares = describe_shares(
        _options("digits", PARTITIONS[0], path=str(path)), load_task("digits"), {"model": "mlp"}
    )
    assert sum(share.train + share.test for share in shares) == 150


def test_what_a_share_is_not_for(tmp_path: Path) -> None:
    source = open_source("share", _options("digits", PARTITIONS[0]), "share")
    with pytest.raises(DataError, match="a share for task 'digits' alone"):
        source.load(load_task("breast_cancer"), {})
    with pytest.raises(UsageError, match="unknown partition 'nonsense'; known: dirichlet"):
        describe_shares(
            _options("digits", {**PARTITIONS[0], "kind": "nonsense"}),
            load_task("digits"),
            {"model": "mlp"},
        )
    gone = _options("digits", PARTITIONS[0], path=str(tmp_path / "gone.npz"))
    with pytest.raises(DataError, match=r"gone\.npz: there is no such file"):
        describe_shares(gone, load_task("digits"), {"model": "mlp"})
