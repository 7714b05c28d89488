"""What the strategies promise beyond the contract, and how they are made from names."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfactory.contracts import plugins
from fedfactory.contracts.errors import (
    IntegrityError,
    UnknownNameError,
    UsageError,
    ValueRangeError,
)
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.updates import Update
from fedfactory.coordinator.aggregating.aggregation import (
    AggregationError,
    StreamingAggregation,
    Unfit,
    mean_metrics,
    verify_update,
)
from fedfactory.rounds.events import Taken
from fedfactory.testing.strategies import (
    SITES,
    TRAINING,
    example_delta,
    example_model,
    train_update,
)
from fedfactory.wire.arrays import read_arrays, spec_of, write_arrays
from strategies import STRATEGIES, make_strategy

EXAMPLES = {"weighting": "examples"}


def aggregate(
    folder: Path,
    options: dict[str, Any],
    examples: dict[str, int | None],
    deltas: dict[str, dict[str, Any]],
) -> BlobRef:
    write_arrays(folder / "base", example_model())
    aggregation = StreamingAggregation(make_strategy("fedavg", options), training=TRAINING)
    aggregation.open_round(1, folder / "base", SITES)
    for site, delta in deltas.items():
        blob = write_arrays(folder / site, delta)
        offer(aggregation, train_update(site, blob, examples=examples[site]), folder / site)
    for site in set(SITES) - deltas.keys():
        aggregation.resolve_absent(site)
    return aggregation.close(folder / "out", taken(*deltas))


def offer(aggregation: StreamingAggregation, update: Update, path: Path) -> None:
    aggregation.offer(update.work.site, update, path, order_round=1, staleness=0)


def taken(*sites: str) -> tuple[Taken, ...]:
    return tuple(Taken(site=site, order_round=1, staleness=0) for site in sorted(sites))


def test_fedavg_is_the_weighted_mean_of_the_paper(tmp_path: Path) -> None:
    deltas = {site: example_delta(i) for i, site in enumerate(SITES)}
    counts = {"cesga": 100, "cyfronet": 20, "lumi": 3}
    aggregate(tmp_path, EXAMPLES, dict(counts), deltas)
    found = read_arrays(tmp_path / "out")
    for name, base in example_model().items():
        if base.dtype.kind != "f":
            assert np.array_equal(found[name], base)
            continue
        total = sum(counts[site] * deltas[site][name].astype(np.float64) for site in SITES)
        expected = base.astype(np.float64) + total / sum(counts.values())
        np.testing.assert_array_equal(found[name], expected.astype(base.dtype))


def test_a_site_without_examples_does_not_count(tmp_path: Path) -> None:
    deltas = {site: example_delta(i) for i, site in enumerate(SITES)}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with_it = aggregate(tmp_path / "a", EXAMPLES, {"cesga": 5, "cyfronet": 0, "lumi": 5}, deltas)
    del deltas["cyfronet"]
    without = aggregate(tmp_path / "b", EXAMPLES, {"cesga": 5, "lumi": 5}, deltas)
    assert with_it == without


def test_withheld_counts_need_uniform_weights(tmp_path: Path) -> None:
    deltas = {site: example_delta(i) for i, site in enumerate(SITES)}
    withheld: dict[str, int | None] = {"cesga": 5, "cyfronet": None, "lumi": 5}
    with pytest.raises(AggregationError, match=r"'cyfronet' withholds.*weighting=uniform"):
        aggregate(tmp_path, EXAMPLES, withheld, deltas)
    aggregate(tmp_path, {"weighting": "uniform"}, withheld, deltas)


def test_no_examples_at_all_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(AggregationError, match="no mean"):
        aggregate(tmp_path, EXAMPLES, {"lumi": 0}, {"lumi": example_delta(0)})
    assert not list(tmp_path.glob("*out*"))


def test_a_result_that_does_not_fit_the_dtype_is_an_error(tmp_path: Path) -> None:
    delta = example_delta(0)
    delta["head.bias"] = np.full(5, 65000.0, dtype=np.float16)
    write_arrays(tmp_path / "base", {**example_model(), "head.bias": delta["head.bias"]})
    blob = write_arrays(tmp_path / "lumi", delta)
    aggregation = StreamingAggregation(make_strategy("fedavg", EXAMPLES), training=TRAINING)
    aggregation.open_round(1, tmp_path / "base", ("lumi",))
    offer(aggregation, train_update("lumi", blob), tmp_path / "lumi")
    with pytest.raises(AggregationError, match=r"head\.bias.*not finite"):
        aggregation.close(tmp_path / "out", taken("lumi"))
    assert not list(tmp_path.glob("*out*"))


def test_the_prefix_is_folded_while_others_still_train(tmp_path: Path) -> None:
    """What has been folded is no longer read: its file may go."""
    write_arrays(tmp_path / "base", example_model())
    aggregation = StreamingAggregation(make_strategy("fedavg", EXAMPLES), training=TRAINING)
    aggregation.open_round(1, tmp_path / "base", SITES)
    for i, site in enumerate(("cyfronet", "cesga")):
        blob = write_arrays(tmp_path / site, example_delta(i))
        offer(aggregation, train_update(site, blob), tmp_path / site)
    for site in ("cyfronet", "cesga"):
        (tmp_path / site).unlink()
    aggregation.resolve_absent("lumi")
    aggregation.close(tmp_path / "out", taken("cesga", "cyfronet"))


def test_fedprox_sets_mu_at_every_site(tmp_path: Path) -> None:
    options = {"mu": 0.25, "weighting": "examples"}
    aggregation = StreamingAggregation(make_strategy("fedprox", options), training=TRAINING)
    model = write_arrays(tmp_path / "base", example_model())
    plans = aggregation.plan_train(1, model, tmp_path / "base", ("lumi", "cesga"))
    assert [plan.site for plan in plans] == ["cesga", "lumi"]
    assert all(plan.training and plan.training.proximal_mu == 0.25 for plan in plans)
    (evaluation,) = aggregation.plan_evaluate(1, model, tmp_path / "base", ("lumi",))
    assert evaluation.training is None


def test_fedbuff_is_algorithm_1_of_the_paper(tmp_path: Path) -> None:
    """The current model moves by server_lr / K sum s(tau) delta, whatever bases the deltas have."""
    write_arrays(tmp_path / "base", example_model())
    aggregation = StreamingAggregation(
        make_strategy("fedbuff", {"server_lr": 0.5}), training=TRAINING
    )
    buffered = (
        Taken(site="cesga", order_round=2, staleness=3),
        Taken(site="cesga", order_round=3, staleness=0),
        Taken(site="lumi", order_round=1, staleness=8),
    )
    for _ in range(2):  # a round that is opened again begins anew
        aggregation.open_round(4, tmp_path / "base", ())
        for number, part in enumerate(reversed(buffered)):
            path = tmp_path / f"{number}"
            update = train_update(
                part.site, write_arrays(path, example_delta(number)), round=part.order_round
            )
            aggregation.offer(part.site, update, path, order_round=part.order_round, staleness=0)
    aggregation.close(tmp_path / "out", buffered)
    found = read_arrays(tmp_path / "out")
    for name, base in example_model().items():
        if base.dtype.kind == "f":
            deltas = [example_delta(number)[name].astype(np.float64) for number in (2, 1, 0)]
            step = 0.5 * (deltas[0] / 2 + deltas[1] + deltas[2] / 3) / 3
            tolerance = np.finfo(base.dtype).eps
            np.testing.assert_allclose(found[name], base + step, rtol=tolerance, atol=tolerance)


def test_a_memory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    aggregation = StreamingAggregation(make_strategy("fedavg", EXAMPLES), training=TRAINING)
    with pytest.raises(IntegrityError, match="begun with another"):
        aggregation.restore(tmp_path / "memory")


def test_metrics_are_weighted_by_examples_and_reduced_to_the_common_ones() -> None:
    blob = BlobRef(digest="sha256:" + "0" * 64, bytes=0)
    one, two = train_update("a", blob, examples=1), train_update("b", blob, examples=3)
    object.__setattr__(one, "metrics", {"loss": 1.0, "accuracy": 0.5})
    object.__setattr__(two, "metrics", {"loss": 2.0})
    assert mean_metrics({"b": two, "a": one}) == {"loss": 1.75}
    object.__setattr__(two, "examples", None)
    assert mean_metrics({"b": two, "a": one}) == {"loss": 1.5}
    assert mean_metrics({}) == {}


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("fedavgg", {}, UnknownNameError, "did you mean 'fedavg'"),
        ("fedavg", {"wait": 1}, UnknownNameError, r"strategy\.weighting"),
        ("fedavg", {}, UsageError, r"needs a value for strategy\.weighting"),
        ("fedavg", {"weighting": "by-size"}, ValueRangeError, "examples, uniform"),
        ("fedprox", {"mu": -1.0, "weighting": "uniform"}, ValueRangeError, r"strategy\.mu=-1"),
        ("fedprox", {"mu": float("nan"), "weighting": "uniform"}, ValueRangeError, "mu=nan"),
        ("fedprox", {"mu": "much", "weighting": "uniform"}, ValueRangeError, "mu=much"),
        ("fedbuff", {"server_lr": 0.0}, ValueRangeError, r"strategy\.server_lr=0"),
        ("fedbuff", {}, UsageError, r"needs a value for strategy\.server_lr"),
    ],
)
def test_wrong_names_and_options(
    name: str, options: dict[str, Any], error: type[UsageError], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_strategy(name, options)


def test_an_outside_package_adds_a_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", "strategies.fedavg:FedAvg", "fedfactory.strategies")
    alien = EntryPoint("alien", "collections:OrderedDict", "fedfactory.strategies")
    monkeypatch.setattr(plugins, "_entries", lambda group: (entry, alien))
    assert STRATEGIES.names() == ["alien", "fedavg", "fedbuff", "fedprox", "mine"]
    assert make_strategy("mine", {"weighting": "uniform"})
    with pytest.raises(UsageError, match="no streaming strategy"):
        make_strategy("alien", {})


class TestVerifyUpdate:
    @pytest.fixture
    def delta(self) -> dict[str, Any]:
        return example_delta(0)

    def check(self, folder: Path, delta: dict[str, Any]) -> tuple[str, str] | None:
        write_arrays(folder / "update", delta)
        return verify_update(folder / "update", spec_of(example_model()), 1e9)

    def test_a_good_update_passes(self, tmp_path: Path, delta: dict[str, Any]) -> None:
        assert self.check(tmp_path, delta) == pytest.approx(
            np.sqrt(sum(np.square(v, dtype=np.float64).sum() for v in delta.values()))
        )

    def test_a_missing_tensor(self, tmp_path: Path, delta: dict[str, Any]) -> None:
        del delta["head.bias"]
        assert self.check(tmp_path, delta) == Unfit(
            code="bad_update_form", detail="tensor 'head.bias' is missing"
        )

    @pytest.mark.parametrize("name", ["norm.batches", "my secret text"])
    def test_another_tensor_is_refused_and_its_name_not_repeated(
        self, tmp_path: Path, delta: dict[str, Any], name: str
    ) -> None:
        delta[name] = np.asarray(1, dtype=np.int64)
        found = self.check(tmp_path, delta)
        assert isinstance(found, Unfit)
        assert found.code == "bad_update_form"
        assert name not in found.detail

    @pytest.mark.parametrize(
        "other", [np.zeros((36,), dtype=np.float32), np.zeros((4, 3, 3), dtype=np.float64)]
    )
    def test_another_shape_or_dtype(
        self, tmp_path: Path, delta: dict[str, Any], other: np.ndarray
    ) -> None:
        found = self.check(tmp_path, {**delta, "conv.weight": other})
        assert isinstance(found, Unfit)
        assert found.code == "bad_update_form"

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_non_finite_values(self, tmp_path: Path, delta: dict[str, Any], bad: float) -> None:
        delta["conv.weight"][1, 2, 0] = bad
        assert self.check(tmp_path, delta) == Unfit(
            code="bad_update_values",
            detail="tensor 'conv.weight' holds NaN or infinity",
        )

    def test_a_truncated_file(self, tmp_path: Path, delta: dict[str, Any]) -> None:
        write_arrays(tmp_path / "update", delta)
        whole = (tmp_path / "update").read_bytes()
        (tmp_path / "update").write_bytes(whole[:-1])
        found = verify_update(tmp_path / "update", spec_of(example_model()), 1e9)
        assert isinstance(found, Unfit)
        assert found.code == "bad_update_form"

    def test_a_header_that_carries_more_than_a_header(
        self, tmp_path: Path, delta: dict[str, Any]
    ) -> None:
        write_arrays(tmp_path / "update", delta)
        whole = (tmp_path / "update").read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header = b'{"__metadata__":{"x":"' + b"y" * 100_000 + b'"},' + whole[9 : 8 + length]
        (tmp_path / "update").write_bytes(
            len(header).to_bytes(8, "little") + header + whole[8 + length :]
        )
        found = verify_update(tmp_path / "update", spec_of(example_model()), 1e9)
        assert isinstance(found, Unfit)
        assert found.code == "bad_update_form"
