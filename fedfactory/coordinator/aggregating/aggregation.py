"""What the round runner asks of any strategy, and the streaming answer.

The runner knows no strategy: it plans a phase, offers verified updates as they arrive, and closes
the round. FlowerAggregation (flower_strategy.py) answers the same for Flower's strategies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from fedfactory.contracts.bounds import shareable
from fedfactory.contracts.errors import FedfactoryError, IntegrityError, ProtocolError
from fedfactory.contracts.model import BlobRef, ModelSpec
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.strategy import StreamingStrategy
from fedfactory.contracts.updates import Update
from fedfactory.coordinator.aggregating.accumulator import (
    Accumulator,
    AggregationError,
    UpdateFaultError,
)
from fedfactory.coordinator.aggregating.flower_state import StrategyMemory
from fedfactory.coordinator.aggregating.site_plan import SitePlan, with_parameters
from fedfactory.rounds.events import Taken
from fedfactory.wire.arrays import ArrayFile, NotFiniteError, norm_l2

__all__ = [
    "Aggregation",
    "AggregationError",
    "SitePlan",
    "StreamingAggregation",
    "Unfit",
    "UpdateFaultError",
    "verify_update",
]


class Aggregation(Protocol):
    """How updates become a model, as the runner sees it. One instance serves one run.

    What it does follows from its construction, from what `restore` was given, and from the calls
    since then in their order: who restores and makes the same calls again gets the same bits.
    Every method but `restore` may raise AggregationError with a public reason.
    """

    def plan_train(
        self,
        round: int,  # noqa: A002
        model: BlobRef,
        model_path: Path,
        sites: tuple[str, ...],
    ) -> tuple[SitePlan, ...]:
        """Choose the sites of a round, and what each trains from and with.

        In async mode `round` is the order's, and `sites` are those that are asked now.
        """

    def plan_evaluate(
        self,
        round: int,  # noqa: A002
        model: BlobRef,
        model_path: Path,
        sites: tuple[str, ...],
    ) -> tuple[SitePlan, ...]:
        """Choose the sites that evaluate the round's new model; none is a valid choice."""

    def open_round(self, round: int, model_path: Path, sites: tuple[str, ...]) -> None:  # noqa: A002
        """Begin the round's aggregate of the model in `model_path`; what was offered is forgotten.

        `sites` are awaited: each gives one update or is told absent, so an aggregate may begin
        before all have answered. In async mode nobody is: `sites` is empty. May be called again.
        """

    def offer(
        self, site: str, update: Update, path: Path, *, order_round: int, staleness: int
    ) -> None:
        """Take a verified update; `path` must stay readable until `close`.

        (`site`, `order_round`) is its key. In sync mode `order_round` is the round and `staleness`
        0; in async mode the staleness that `close` is given counts.
        """

    def resolve_absent(self, site: str) -> None:
        """Note that no update of this awaited site will come in this round."""

    def close(self, out: Path, updates: tuple[Taken, ...]) -> BlobRef:
        """Write the new model from `updates`, all of them offered since `open_round`, to `out`.

        Raises:
            UpdateFaultError: one of them cannot be folded; call again without it.
        """

    def aggregate_metrics(
        self,
        round: int,  # noqa: A002
        updates: Mapping[str, Update],
    ) -> dict[str, float]:
        """Combine evaluations (by site) into the shared model's metrics."""

    def save(self, folder: Path) -> BlobRef | None:
        """Write what the strategy remembers to `folder`/<digest in hex>; None: nothing.

        The caller makes it durable. Equal memories give equal files. Called after `close`, at any
        time until the next `plan_train`.
        """

    def restore(self, path: Path | None) -> None:
        """Take up the memory that `save` wrote (None: none), before any other call.

        Raises:
            IntegrityError: not the memory of such a strategy.
        """


class StreamingAggregation:
    """Runs a StreamingStrategy: every site takes part; updates are folded as they become next.

    An update is folded once every awaited site before it (by name) has answered or is known
    absent, the rest at `close`; so the order of arrival cannot change a bit.
    """

    def __init__(self, strategy: StreamingStrategy, *, training: TrainParameters) -> None:
        self._memory = StrategyMemory(strategy, {})
        self._training = with_parameters(training, strategy.train_parameters())
        self._accumulator = Accumulator(strategy)
        self._pending: list[str] = []  # in reverse site order: the next to fold is the last
        self._offered: dict[tuple[str, int], tuple[Taken, Update, Path]] = {}
        self._absent: set[str] = set()
        self._folded: list[Taken] = []
        self._failure: AggregationError | None = None
        self._faults: dict[tuple[str, int], UpdateFaultError] = {}

    def plan_train(
        self,
        round: int,  # noqa: A002, ARG002
        model: BlobRef,
        model_path: Path,
        sites: tuple[str, ...],
    ) -> tuple[SitePlan, ...]:
        """Every site trains from the shared model with the strategy's parameters."""
        return _everyone(sites, self._training, model, model_path)

    def plan_evaluate(
        self,
        round: int,  # noqa: A002, ARG002
        model: BlobRef,
        model_path: Path,
        sites: tuple[str, ...],
    ) -> tuple[SitePlan, ...]:
        """Every site evaluates the shared model."""
        return _everyone(sites, None, model, model_path)

    def open_round(self, round: int, model_path: Path, sites: tuple[str, ...]) -> None:  # noqa: A002, ARG002
        """See Aggregation."""
        self._accumulator.begin(model_path)
        self._pending = sorted(sites, reverse=True)
        self._offered.clear()
        self._absent.clear()
        self._folded.clear()
        self._failure = None
        self._faults.clear()

    def offer(
        self, site: str, update: Update, path: Path, *, order_round: int, staleness: int
    ) -> None:
        """See Aggregation. What is wrong with an update is raised by `close`."""
        taken = Taken(site=site, order_round=order_round, staleness=staleness)
        assert _canonical(taken) not in self._offered, f"{taken} has been offered already"
        self._offered[_canonical(taken)] = (taken, update, path)
        self._fold_awaited()

    def resolve_absent(self, site: str) -> None:
        """See Aggregation."""
        self._absent.add(site)
        self._fold_awaited()

    def close(self, out: Path, updates: tuple[Taken, ...]) -> BlobRef:
        """See Aggregation."""
        ordered = sorted(updates, key=_canonical)
        known = [taken for taken in ordered if _canonical(taken) not in self._faults]
        assert self._folded == known[: len(self._folded)], "an update was folded unasked"
        for taken in known[len(self._folded) :]:
            if self._failure is None:
                self._fold(taken)
        self._pending.clear()
        if self._failure is not None:
            raise self._failure
        if faulty := [key for key in map(_canonical, ordered) if key in self._faults]:
            raise self._faults[faulty[0]]
        return self._accumulator.finish(out)

    def aggregate_metrics(
        self,
        round: int,  # noqa: A002, ARG002
        updates: Mapping[str, Update],
    ) -> dict[str, float]:
        """Return the mean of each metric that all report, weighted by examples.

        Unweighted if a site withholds its number of examples, or if there are none at all.
        """
        return mean_metrics(updates)

    def save(self, folder: Path) -> BlobRef | None:
        """See Aggregation. Most streaming strategies remember nothing."""
        return self._memory.save(folder)

    def restore(self, path: Path | None) -> None:
        """See Aggregation."""
        if path is not None:
            self._memory.restore(path)

    def _fold_awaited(self) -> None:
        answered = {taken.site: taken for taken, _, _ in self._offered.values()}
        while self._pending and self._failure is None:
            site = self._pending[-1]
            if site in answered:
                self._fold(answered[site])
            elif site not in self._absent:
                return
            self._pending.pop()

    def _fold(self, taken: Taken) -> None:
        assert _canonical(taken) in self._offered, f"{taken} has not been offered"
        _, update, path = self._offered.pop(_canonical(taken))
        try:
            self._accumulator.add(update, path, staleness=taken.staleness)
        except UpdateFaultError as error:
            self._faults[_canonical(taken)] = error
            return
        except AggregationError as error:
            self._failure = error
        except FedfactoryError as error:
            self._failure = AggregationError(error.public_message)
        self._folded.append(taken)


def _canonical(taken: Taken) -> tuple[str, int]:
    return taken.site, taken.order_round


def mean_metrics(updates: Mapping[str, Update]) -> dict[str, float]:
    """Return the example-weighted mean of each metric that all updates report."""
    found = [updates[site] for site in sorted(updates)]
    weights = [float(update.examples or 0) for update in found]
    if any(update.examples is None for update in found) or sum(weights) == 0.0:
        weights = [1.0] * len(found)
    means = {
        name: sum(w * u.metrics[name] for w, u in zip(weights, found, strict=True)) / sum(weights)
        for name in common_metrics(found)
    }
    return shareable(means)


def common_metrics(updates: list[Update]) -> list[str]:
    """Return the names of the metrics that every update reports, sorted."""
    names = [update.metrics.keys() for update in updates]
    return sorted(set(names[0]).intersection(*names[1:])) if names else []


def _everyone(
    sites: tuple[str, ...], training: TrainParameters | None, model: BlobRef, path: Path
) -> tuple[SitePlan, ...]:
    return tuple(
        SitePlan(site=site, training=training, base=model, base_path=path) for site in sorted(sites)
    )


# A header holds names, shapes and offsets; a site has no use for more, and we no room.
_HEADER_BYTES: Final = 4096
_HEADER_BYTES_PER_TENSOR: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """Why an update is not taken: a key of REFUSALS. `detail` repeats no text of the site's."""

    code: str
    detail: str


def verify_update(path: Path, model: ModelSpec, max_norm_l2: float) -> float | Unfit:
    """Check a received update against the model and return its L2 norm; reads it once.

    It must hold exactly the model's float tensors, all finite, and nothing beside them; its norm
    over all of them is at most `max_norm_l2` (contracts/update_norms.py).
    """
    expected = model.update_spec()
    try:
        with ArrayFile(path) as file:
            if fault := _form_fault(path.stat().st_size, file.spec, expected):
                return Unfit(code="bad_update_form", detail=fault)
            norm = norm_l2(file)
    except NotFiniteError as error:  # its tensors' names are the model's
        return Unfit(code="bad_update_values", detail=error.public_message)
    except (IntegrityError, ProtocolError):
        return Unfit(code="bad_update_form", detail="not a whole safetensors file")
    if norm > max_norm_l2:
        told = f"its norm is {norm:.6g}, the bound is {max_norm_l2:.6g}"
        return Unfit(code="bad_update_norm", detail=told)
    return norm


def _form_fault(size: int, found: ModelSpec, expected: ModelSpec) -> str | None:
    known = {tensor.name for tensor in expected.tensors}
    if strangers := sum(tensor.name not in known for tensor in found.tensors):
        return f"{strangers} tensor(s) that are no float tensors of the model"
    if fault := expected.difference(found):
        return fault
    allowed = expected.bytes + _HEADER_BYTES
    allowed += sum(len(name.encode()) + _HEADER_BYTES_PER_TENSOR for name in known)
    if size > allowed:
        return f"{size} bytes, expected at most {allowed}"
    return None
