"""Runs any Flower strategy as an Aggregation: the one place where its conventions meet ours.

A strategy sees what it would see in Flower: full models, node ids, a Grid, replies sorted by site.
What it returns is read: messages become site plans, arrays the next model. It never touches a
wire, cannot wait for ever, and draws the same random numbers whenever a round is run again.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedfactory.contracts.bounds import shareable
from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import TrainParameters, WorkKind
from fedfactory.contracts.updates import Update
from fedfactory.coordinator.aggregating.accumulator import AggregationError, UpdateFaultError
from fedfactory.coordinator.aggregating.aggregation import common_metrics
from fedfactory.coordinator.aggregating.fixed_draws import seeded
from fedfactory.coordinator.aggregating.flower_config import ROUND_KEY, asked_of_site, config_of
from fedfactory.coordinator.aggregating.flower_grid import SiteGrid, node_ids, sites_needed
from fedfactory.coordinator.aggregating.flower_records import (
    RECORDS,
    read_model,
    read_trained,
    same_arrays,
    write_model,
)
from fedfactory.coordinator.aggregating.flower_state import StrategyMemory
from fedfactory.coordinator.aggregating.own_bases import OwnBases
from fedfactory.coordinator.aggregating.site_plan import SitePlan
from fedfactory.rounds.events import Taken

T = TypeVar("T")

_EXAMPLES_KEY: Final = "num-examples"
_Configure = Callable[[int, ArrayRecord, ConfigRecord, SiteGrid], Iterable[Message]]


class FlowerAggregation:
    """An Aggregation by one Flower strategy, for a run that `sites` may take part in.

        The strategy knows sites by ids made from their names (node_ids), never by Flower's, which a
        restart changes. `training` is what sites train with unless the strategy's messages say
    otherwise (keys of flower_config.CONFIG_KEYS). `seed` is the run's.

    Raises:
        UsageError: the strategy waits for more sites than there are, or holds what cannot be saved.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        training: TrainParameters,
        sites: tuple[str, ...],
        seed: int,
    ) -> None:
        self._strategy = strategy
        self._name = type(strategy).__name__
        self._training = training
        self._nodes = node_ids(sites)
        self._sites = {node: site for site, node in self._nodes.items()}
        self._seed = seed
        # As in Flower's own loop, one record lives through the run: strategies schedule with it.
        self._configs = {"train": config_of(training), "evaluate": ConfigRecord()}
        self._own_bases = OwnBases()
        self._offered: dict[str, tuple[Update, Path]] = {}
        self._round = 0
        self._model_path = Path()
        needed = max(sites_needed(strategy, "train"), sites_needed(strategy, "evaluate"))
        if needed > len(sites):
            raise UsageError(self._too_few(needed, len(sites)))
        self._memory = StrategyMemory(strategy, self._configs, RECORDS)

    def plan_train(
        self,
        round: int,  # noqa: A002
        model: BlobRef,
        model_path: Path,
        sites: tuple[str, ...],
    ) -> tuple[SitePlan, ...]:
        """Ask the strategy whom to train, from what and with what."""
        self._own_bases.clear()
        plans = self._plan("train", round, model, model_path, sites)
        if not plans:
            raise AggregationError(f"{self._name} chose no site to train in round {round}")
        return plans

    def plan_evaluate(
        self,
        round: int,  # noqa: A002
        model: BlobRef,
        model_path: Path,
        sites: tuple[str, ...],
    ) -> tuple[SitePlan, ...]:
        """Ask the strategy whom to let evaluate."""
        return self._plan("evaluate", round, model, model_path, sites)

    def open_round(self, round: int, model_path: Path, sites: tuple[str, ...]) -> None:  # noqa: A002, ARG002
        """See Aggregation. Flower's strategies take all replies at once, so nothing is folded."""
        self._round = round
        self._model_path = model_path
        self._offered.clear()

    def offer(
        self,
        site: str,
        update: Update,
        path: Path,
        *,
        order_round: int,  # noqa: ARG002
        staleness: int,
    ) -> None:
        """See Aggregation."""
        assert site not in self._offered, f"'{site}' has answered already"
        assert staleness == 0, "a Flower strategy takes updates of this round only"
        self._offered[site] = (update, path)

    def resolve_absent(self, site: str) -> None:
        """See Aggregation. An absent site gives no reply."""

    def close(self, out: Path, updates: tuple[Taken, ...]) -> BlobRef:
        """Let the strategy aggregate full models, read one by one as it iterates."""
        taken = {update.site: self._offered[update.site][0] for update in updates}
        replies = self._replies("train", taken)
        result = self._call(
            "aggregate_train",
            self._round,
            lambda: self._strategy.aggregate_train(self._round, replies),
        )
        arrays = result[0]
        if arrays is None:
            raise AggregationError(
                f"{self._name} made no model out of {len(updates)} update(s);"
                " it needs more of them, or other ones"
            )
        return write_model(out, arrays, self._model_path)

    def aggregate_metrics(
        self,
        round: int,  # noqa: A002
        updates: Mapping[str, Update],
    ) -> dict[str, float]:
        """Let the strategy aggregate the evaluations."""
        replies = self._replies("evaluate", updates)
        record = self._call(
            "aggregate_evaluate",
            round,
            lambda: self._strategy.aggregate_evaluate(round, replies),
        )
        metrics = {
            name: float(value)
            for name, value in (record or MetricRecord()).items()
            if not isinstance(value, list)
        }
        if bad := sorted(metrics.keys() - shareable(metrics).keys()):
            raise AggregationError(f"{self._name} made a metric '{bad[0]}' that is not finite")
        return metrics

    def save(self, folder: Path) -> BlobRef | None:
        """See Aggregation."""
        return self._memory.save(folder)

    def restore(self, path: Path | None) -> None:
        """See Aggregation."""
        if path is not None:
            self._memory.restore(path)

    # ---- messages out ----------------------------------------------------------------------

    def _plan(
        self,
        kind: WorkKind,
        number: int,
        model: BlobRef,
        model_path: Path,
        sites: tuple[str, ...],
    ) -> tuple[SitePlan, ...]:
        if (needed := sites_needed(self._strategy, kind)) > len(sites):
            raise AggregationError(self._too_few(needed, len(sites)))
        arrays = read_model(model_path)
        shared = {name: array.data for name, array in arrays.items()}
        grid = SiteGrid({site: self._nodes[site] for site in sites})
        configure: _Configure = getattr(self._strategy, f"configure_{kind}")
        config = self._configs[kind]
        messages = self._call(
            f"configure_{kind}", number, lambda: list(configure(number, arrays, config, grid))
        )
        plans: dict[str, SitePlan] = {}
        for message in messages:
            site = self._addressee(message, sites, plans)
            training = asked_of_site(kind, message, self._training)
            (carried,) = self._only_arrays(message)
            if same_arrays(carried, shared):
                base, path = model, model_path
            elif (kind, number) == ("train", 1):  # sites refuse it: contracts/plans.py, RunTerms
                raise AggregationError(
                    f"{self._name} sends '{site}' a model of its own in round 1, which starts from"
                    " the first model that the operator signed; start from it (model=FILE), or"
                    " send others from round 2 on"
                )
            else:
                base, path = self._own_bases.write(kind, site, carried, model_path)
            plans[site] = SitePlan(site=site, training=training, base=base, base_path=path)
        config.pop(ROUND_KEY, None)
        return tuple(plans[site] for site in sorted(plans))

    def _addressee(
        self, message: Message, sites: tuple[str, ...], plans: Mapping[str, SitePlan]
    ) -> str:
        site = self._sites.get(message.metadata.dst_node_id)
        if site is None or site not in sites:
            raise AggregationError(
                f"{self._name} addresses node {message.metadata.dst_node_id}, which is no site"
                " of this phase"
            )
        if site in plans:
            raise AggregationError(f"{self._name} sends two messages to '{site}' in one phase")
        return site

    def _only_arrays(self, message: Message) -> list[ArrayRecord]:
        records = list(message.content.array_records.values())
        if len(records) != 1:
            raise AggregationError(
                f"{self._name} sends {len(records)} array records in one message, expected 1"
            )
        return records

    # ---- replies in ------------------------------------------------------------------------

    def _replies(self, kind: WorkKind, updates: Mapping[str, Update]) -> Iterator[Message]:
        """Yield replies sorted by site, each read when it is asked for.

        Metrics are cut to those that all report, since Flower exits on differing ones, and get
        what Flower's strategies look for: 'num-examples' (1 each if any site withholds its own),
        and 'train_loss' beside the `loss` of training.
        """
        found = [updates[site] for site in sorted(updates)]
        names = common_metrics(found)
        withheld = any(update.examples is None for update in found)
        for update in found:
            metrics: dict[str, Any] = {name: float(update.metrics[name]) for name in names}
            if kind == "train" and "loss" in metrics:
                metrics.setdefault("train_loss", metrics["loss"])
            metrics[_EXAMPLES_KEY] = 1 if withheld else update.examples
            site = update.work.site
            content = RecordDict({"metrics": MetricRecord(metrics)})
            if kind == "train":
                base = self._own_bases.of(site, self._model_path)
                key = str(getattr(self._strategy, "arrayrecord_key", "arrays"))
                try:
                    content[key] = read_trained(base, self._offered[site][1])
                except AggregationError as error:
                    raise UpdateFaultError(update, error.public_message) from error
            asked = Message(RecordDict(), dst_node_id=self._nodes[site], message_type=kind)
            yield Message(content, reply_to=asked)

    # ---- calls -----------------------------------------------------------------------------

    def _call(self, name: str, number: int, call: Callable[[], T]) -> T:
        """Call the strategy with its random numbers fixed; whatever it raises is told."""
        try:
            with seeded(f"{self._seed}/{number}/{name}"):
                return call()
        except AggregationError:
            raise
        except (Exception, SystemExit) as error:
            raise AggregationError(
                f"{self._name}.{name}: {type(error).__name__}: {error}",
                diagnostic=traceback.format_exc(),
            ) from error

    def _too_few(self, needed: int, found: int) -> str:
        return (
            f"{self._name} waits for {needed} sites, there are {found}; lower"
            " +strategy.min_available_nodes, min_train_nodes and min_evaluate_nodes"
        )
