"""Arrival order, absentees and the cut into chunks never change a bit of the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.aggregating import accumulator
from fedfactory.coordinator.aggregating.aggregation import StreamingAggregation
from fedfactory.rounds.events import Taken
from fedfactory.testing.strategies import TRAINING, example_delta, example_model, train_update
from fedfactory.wire.arrays import read_arrays, write_arrays
from strategies import make_strategy

SITES = ("a", "b", "c", "d", "e")
FedAvg = make_strategy("fedavg", {"weighting": "examples"})
answers = st.permutations(SITES)
present = st.sets(st.sampled_from(SITES), min_size=1)


def run_round(
    folder: Path,
    order: list[str],
    answering: set[str],
    told: bool,
    aggregation: StreamingAggregation,
) -> BlobRef:
    aggregation.open_round(1, folder / "base", SITES)
    for site in order:
        if site in answering:
            number = SITES.index(site)
            blob = write_arrays(folder / site, example_delta(number))
            update = train_update(site, blob, examples=3 + 7 * number)
            aggregation.offer(site, update, folder / site, order_round=1, staleness=0)
        elif told:
            aggregation.resolve_absent(site)
    return aggregation.close(folder / "out", taken(answering))


def taken(sites: Iterable[str]) -> tuple[Taken, ...]:
    return tuple(Taken(site=site, order_round=1, staleness=0) for site in sorted(sites))


@settings(deadline=None, max_examples=60)
@given(
    order=answers, answering=present, told=st.booleans(), chunk=st.sampled_from([1, 5, 36, 4096])
)
def test_only_who_answered_decides_the_model(
    order: list[str], answering: set[str], told: bool, chunk: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_arrays(folder / "base", example_model())
        fresh = StreamingAggregation(FedAvg, training=TRAINING)
        expected = run_round(folder, sorted(SITES), answering, True, fresh)
        with patch.object(accumulator, "CHUNK_ELEMENTS", chunk):
            aggregation = StreamingAggregation(FedAvg, training=TRAINING)
            run_round(
                folder, order, set(SITES), told, aggregation
            )  # an earlier round leaves no trace
            assert run_round(folder, order, answering, told, aggregation) == expected


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(1, 10_000), min_size=1, max_size=5))
def test_the_mean_is_numpys(counts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_arrays(folder / "base", example_model())
        aggregation = StreamingAggregation(FedAvg, training=TRAINING)
        sites = SITES[: len(counts)]
        aggregation.open_round(1, folder / "base", sites)
        for i, site in enumerate(sites):
            blob = write_arrays(folder / site, example_delta(i))
            update = train_update(site, blob, examples=counts[i])
            aggregation.offer(site, update, folder / site, order_round=1, staleness=0)
        aggregation.close(folder / "out", taken(sites))
        found = read_arrays(folder / "out")
        for key, delta in example_delta(0).items():
            stacked = [example_delta(i)[key].astype(np.float64) for i in range(len(counts))]
            mean = np.average(stacked, axis=0, weights=counts) if delta.size else delta
            expected = example_model()[key].astype(np.float64) + mean
            tolerance = np.finfo(delta.dtype).eps
            np.testing.assert_allclose(found[key], expected, rtol=tolerance, atol=tolerance)
