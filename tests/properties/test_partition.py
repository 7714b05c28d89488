"""Shares of one data set: disjoint, whole, reproducible; and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.table import load_task
from site_agents.data.partition import MIN_EXAMPLES, split, train_and_test
from site_agents.data.sources import load_site_data, read_npz

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


def _write(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


GOOD_X = np.zeros((20, 64), np.float32)
GOOD_Y = np.zeros(20, np.int64)
BAD = {
    "no y": {"x": GOOD_X},
    "shape": {"x": GOOD_X[:, :5], "y": GOOD_Y},
    "length": {"x": GOOD_X, "y": GOOD_Y[:3]},
    "label": {"x": GOOD_X, "y": GOOD_Y + 10},
    "nan": {"x": GOOD_X * np.nan, "y": GOOD_Y},
    "range": {"x": GOOD_X + 16, "y": GOOD_Y},
    "objects": {"x": np.array([{}] * 20, dtype=object), "y": GOOD_Y},
    "strings": {"x": np.array(["a"] * 20), "y": GOOD_Y},
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_named(case: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "d.npz", **BAD[case])
    with pytest.raises(DataError, match=r"d\.npz"):
        read_npz(path, load_task("digits"))


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_a_file_that_is_no_npz(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz"):
        read_npz(path, load_task("digits"))


def test_a_truncated_npz(tmp_path: Path) -> None:
    path = _write(tmp_path / "d.npz", x=GOOD_X, y=GOOD_Y)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError):
        read_npz(path, load_task("digits"))


def test_a_site_with_too_few_examples_of_its_own(tmp_path: Path) -> None:
    path = _write(tmp_path / "d.npz", x=GOOD_X[:3], y=GOOD_Y[:3])
    options = {"source": "npz", "path": str(path), "seed": 0}
    with pytest.raises(DataError, match="3 examples"):
        load_site_data(options, "a", load_task("digits"))
