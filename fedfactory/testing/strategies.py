"""What every streaming strategy must keep to; outside plug-ins hold their own to it too.

A plug-in's test is a class `TestMine(StreamingStrategyContract)` whose fixture `strategy` returns
the strategy as its users make it.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import TrainParameters, WorkKey
from fedfactory.contracts.strategy import StaleStrategy, StreamingStrategy
from fedfactory.contracts.updates import Payload, Update
from fedfactory.coordinator.aggregating.aggregation import StreamingAggregation
from fedfactory.rounds.events import Taken
from fedfactory.wire.arrays import read_arrays, spec_of, write_arrays

TRAINING = TrainParameters(
    local_epochs=1, batch_size=32, lr=0.1, momentum=0.0, proximal_mu=0.0, max_steps=None
)
SITES = ("cesga", "cyfronet", "lumi")


def train_update(
    site: str,
    blob: BlobRef,
    *,
    examples: int | None = 10,
    round: int = 1,  # noqa: A002
) -> Update:
    """Return an accepted answer to a `train` order."""
    work = WorkKey(
        coordinator="test", run_id="run", round=round, kind="train", site=site, order_digest="none"
    )
    payload = Payload(form="delta", blob=blob)
    return Update(
        work=work,
        payload=payload,
        examples=examples,
        metrics={"loss": 1.0},
        seconds=0.1,
        privacy=None,
    )


def example_model() -> dict[str, NDArray[Any]]:
    """Return a small model: two shapes, two float dtypes, an integer buffer, an empty tensor."""
    random = np.random.default_rng(7)
    return {
        "conv.weight": random.standard_normal((4, 3, 3), dtype=np.float32),
        "head.bias": random.standard_normal(5).astype(np.float16),
        "norm.batches": np.asarray(11, dtype=np.int64),
        "unused": np.empty((0, 3), dtype=np.float32),
    }


def example_delta(number: int) -> dict[str, NDArray[Any]]:
    """Return the update of one site: the model's float tensors."""
    random = np.random.default_rng(100 + number)
    return {
        name: (0.1 * random.standard_normal(base.shape)).astype(base.dtype)
        for name, base in example_model().items()
        if base.dtype.kind == "f"
    }


def fold(
    strategy: StreamingStrategy,
    folder: Path,
    base: Path,
    contributions: tuple[Taken, ...],
    order: tuple[Taken, ...],
) -> BlobRef:
    """Make folder/'out' from `base`: `contributions`, arriving in `order`, of fixed deltas."""
    aggregation = StreamingAggregation(strategy, training=TRAINING)
    stale = any(taken.staleness for taken in contributions)
    sites = () if stale else tuple(taken.site for taken in contributions)
    aggregation.open_round(1, base, sites)
    for taken in order:
        path = folder / f"{taken.site}-{taken.order_round}"
        number = SITES.index(taken.site)
        blob = write_arrays(path, example_delta(10 * taken.order_round + number))
        update = train_update(taken.site, blob, examples=10 + number, round=taken.order_round)
        aggregation.offer(
            taken.site, update, path, order_round=taken.order_round, staleness=taken.staleness
        )
    return aggregation.close(folder / "out", contributions)


class StreamingStrategyContract:
    """Override the fixture `strategy`."""

    @pytest.fixture
    def strategy(self) -> StreamingStrategy:
        """The strategy under test."""
        raise NotImplementedError("override the fixture 'strategy'")

    @pytest.fixture
    def update(self, tmp_path: Path) -> Update:
        """An update that counts 10 examples."""
        return train_update("lumi", write_arrays(tmp_path / "update", example_delta(0)))

    def test_it_sets_only_training_parameters_that_there_are(
        self, strategy: StreamingStrategy
    ) -> None:
        """Names of TrainParameters, values in their ranges."""
        StreamingAggregation(strategy, training=TRAINING)

    def test_a_weight_is_finite_and_repeats(
        self, strategy: StreamingStrategy, update: Update
    ) -> None:
        """The weight follows from the update alone."""
        weight = strategy.weight(update)
        assert math.isfinite(weight)
        assert weight > 0
        assert strategy.weight(update) == weight

    def test_apply_keeps_its_arguments_shape_and_precision(
        self, strategy: StreamingStrategy
    ) -> None:
        """`base` and `mean_delta` are buffers of the caller's."""
        base, mean = np.linspace(-1, 1, 50), np.linspace(0.5, -0.5, 50)
        kept = base.copy(), mean.copy()
        result = strategy.apply(base, mean)
        assert result.shape == base.shape
        assert result.dtype == np.float64
        assert np.isfinite(result).all()
        assert np.array_equal(base, kept[0])
        assert np.array_equal(mean, kept[1])
        assert strategy.apply(base[:0], mean[:0]).shape == (0,)

    def test_apply_does_not_depend_on_how_the_model_is_cut(
        self, strategy: StreamingStrategy
    ) -> None:
        """Chunks of any length give the same bits as the whole."""
        base, mean = np.linspace(-1, 1, 64), np.linspace(0.5, -0.5, 64)
        whole = strategy.apply(base, mean)
        for step in (1, 7, 64):
            cut = [
                strategy.apply(base[i : i + step], mean[i : i + step]) for i in range(0, 64, step)
            ]
            assert np.array_equal(np.concatenate(cut), whole)

    def test_arrival_order_changes_no_bit_of_the_model(
        self, strategy: StreamingStrategy, tmp_path: Path
    ) -> None:
        """A round on real files: the result has the model's form, its integers untouched."""
        base = tmp_path / "base"
        write_arrays(base, example_model())
        taken = tuple(Taken(site=site, order_round=1, staleness=0) for site in SITES)
        results = {fold(strategy, tmp_path, base, taken, order) for order in permutations(taken)}
        assert len(results) == 1
        model = read_arrays(tmp_path / "out")
        assert spec_of(model) == spec_of(example_model())
        assert model["norm.batches"] == example_model()["norm.batches"]

    def test_a_resumed_run_goes_on_to_the_same_bits(
        self, strategy: StreamingStrategy, tmp_path: Path
    ) -> None:
        """What it remembers is saved after a round, as every strategy's is, and taken up again."""
        fresh = copy.deepcopy(strategy)
        watching = StreamingAggregation(strategy, training=TRAINING)
        base, first = tmp_path / "base", tmp_path / "first"
        write_arrays(base, example_model())
        rounds = [
            tuple(Taken(site=site, order_round=number, staleness=0) for site in SITES)
            for number in (1, 2)
        ]
        fold(strategy, tmp_path, base, rounds[0], rounds[0])
        (tmp_path / "out").rename(first)
        memory = watching.save(tmp_path)
        undisturbed = fold(strategy, tmp_path, first, rounds[1], rounds[1])
        resumed = StreamingAggregation(fresh, training=TRAINING)
        if memory is not None:
            resumed.restore(tmp_path / memory.digest.removeprefix("sha256:"))
        assert fold(fresh, tmp_path, first, rounds[1], rounds[1]) == undisturbed
        assert resumed.save(tmp_path) == watching.save(tmp_path)


class StaleStrategyContract(StreamingStrategyContract):
    """For strategies with a `stale_weight`, which run with rounds.mode=async."""

    def test_a_stale_update_counts_no_more_than_a_fresher_one(
        self, strategy: StreamingStrategy, update: Update
    ) -> None:
        """Finite, from 0, never rising with staleness, and the plain weight at 0."""
        assert isinstance(strategy, StaleStrategy)
        weights = [strategy.stale_weight(update, staleness) for staleness in range(200)]
        assert weights[0] == strategy.weight(update)
        assert all(math.isfinite(weight) and weight >= 0 for weight in weights)
        assert all(later <= earlier for earlier, later in pairwise(weights))
        assert strategy.stale_weight(update, 7) == weights[7]

    def test_stale_updates_fold_in_canonical_order_too(
        self, strategy: StreamingStrategy, tmp_path: Path
    ) -> None:
        """Also two of one site: the order of arrival changes no bit, staleness does."""
        base = tmp_path / "base"
        write_arrays(base, example_model())
        taken = (
            Taken(site=SITES[0], order_round=3, staleness=0),
            Taken(site=SITES[0], order_round=4, staleness=2),
            Taken(site=SITES[1], order_round=1, staleness=9),
        )
        results = {fold(strategy, tmp_path, base, taken, order) for order in permutations(taken)}
        assert len(results) == 1
