"""Sites that 'train' by a fixed pull towards their own point, under any Aggregation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.updates import Update
from fedfactory.coordinator.aggregating.aggregation import Aggregation, SitePlan
from fedfactory.coordinator.aggregating.flower_loading import load_flower_strategy
from fedfactory.coordinator.aggregating.flower_strategy import FlowerAggregation
from fedfactory.rounds.events import Taken
from fedfactory.testing.strategies import TRAINING, train_update
from fedfactory.wire.arrays import read_arrays, write_arrays

SITES = ("cesga", "cyfronet", "helios", "lumi", "meluxina", "snellius", "vega")
FLOWER = "flwr.serverapp.strategy."

# name -> (sites that it needs, options)
STRATEGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "FedAvg": (3, {}),
    "FedAvgM": (3, {"server_momentum": 0.9, "server_learning_rate": 0.5}),
    "FedAdagrad": (3, {}),
    "FedAdam": (3, {}),
    "FedYogi": (3, {}),
    "FedProx": (3, {"proximal_mu": 0.1}),
    "FedMedian": (3, {}),
    "FedTrimmedAvg": (5, {"beta": 0.2}),
    "Krum": (4, {"num_malicious_nodes": 1}),
    "MultiKrum": (4, {"num_malicious_nodes": 1, "num_nodes_to_select": 2}),
    "Bulyan": (7, {"num_malicious_nodes": 1}),
    "QFedAvg": (3, {"client_learning_rate": 0.1}),
}


def example() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "conv.weight": rng.standard_normal((3, 2, 2), dtype=np.float32),
        "head.scale": np.asarray(1.5, dtype=np.float32),
        "norm.batches": np.asarray(5, dtype=np.int64),
        "norm.mean": rng.standard_normal(4),
    }


class Federation:
    """Sites that 'train' by a fixed pull towards their own point, over any Aggregation."""

    def __init__(self, folder: Path, aggregation: Aggregation, model: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.aggregation = aggregation
        self.path = folder / "round-0"
        self.ref = write_arrays(self.path, model)
        self.plans: tuple[SitePlan, ...] = ()
        self.round = 0

    def train(self, plan: SitePlan) -> tuple[Update, Path]:
        base = read_arrays(self.folder / plan.base.digest)
        number = SITES.index(plan.site)
        rng = np.random.default_rng([number, self.round])
        delta = {
            name: (0.1 * (rng.standard_normal(value.shape) + number - value)).astype(value.dtype)
            for name, value in base.items()
            if value.dtype.kind == "f"
        }
        path = self.folder / f"{plan.site}-{self.round}"
        update = train_update(plan.site, write_arrays(path, delta), examples=10 + 5 * number)
        # What sites report may differ: one has a metric more.
        extra = {"rounds_seen": 1.0} if number == 1 else {}
        return replace(update, metrics={"loss": 0.5 + number, **extra}), path

    def run_round(self, sites: tuple[str, ...], absent: tuple[str, ...] = ()) -> BlobRef:
        self.round += 1
        self.plans = self.aggregation.plan_train(self.round, self.ref, self.path, sites)
        chosen = tuple(plan.site for plan in self.plans)
        for plan in self.plans:  # the gateway takes the file over, as a blob by its digest
            blob = self.folder / plan.base.digest
            if plan.base == self.ref:
                blob.write_bytes(plan.base_path.read_bytes())
            else:
                plan.base_path.replace(blob)
        self.aggregation.open_round(self.round, self.path, chosen)
        accepted = [plan for plan in self.plans if plan.site not in absent]
        for plan in reversed(accepted):
            update, path = self.train(plan)
            self.aggregation.offer(plan.site, update, path, order_round=self.round, staleness=0)
        for site in absent:
            self.aggregation.resolve_absent(site)
        out = self.folder / f"round-{self.round}"
        taken = (Taken(site=p.site, order_round=self.round, staleness=0) for p in accepted)
        self.ref = self.aggregation.close(out, tuple(taken))
        self.path = out
        return self.ref

    def evaluate(self, sites: tuple[str, ...]) -> dict[str, float]:
        plans = self.aggregation.plan_evaluate(self.round, self.ref, self.path, sites)
        assert all(plan.training is None for plan in plans)
        return self.aggregation.aggregate_metrics(
            self.round, {plan.site: evaluation(plan.site) for plan in plans}
        )


def evaluation(site: str) -> Update:
    number = SITES.index(site)
    update = train_update(site, BlobRef(digest="sha256:" + "0" * 64, bytes=0), examples=1 + number)
    work = replace(update.work, kind="evaluate")
    metrics = {"loss": float(number), "accuracy": 0.5}
    return replace(update, work=work, payload=None, metrics=metrics)


def adapted(
    name: str, sites: tuple[str, ...] = SITES, seed: int = 1, **options: Any
) -> FlowerAggregation:
    target = name if "." in name else FLOWER + name
    return FlowerAggregation(
        load_flower_strategy({"_target_": target, **options}, any_class=True),
        training=TRAINING,
        sites=sites,
        seed=seed,
    )
