"""Runs to report on: event lists that the round machine itself accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.privacy import PrivacyPlan, PrivacySpent
from fedfactory.rounds.events import (
    DeadlinePassed,
    Event,
    Finish,
    MetricsAggregated,
    ModelAggregated,
    OrdersSent,
    ReplyRefused,
    RunResumed,
    RunStarted,
)
from fedfactory.rounds.history import History, append
from fedfactory.rounds.machine import RunState, step
from fedfactory.rounds.summary import summary
from tests.run_events import accepted
from tests.run_plans import run_plan

BLOB = BlobRef(digest="sha256:" + "a" * 64, bytes=408792)


PRIVACY = PrivacyPlan(
    target_epsilon=3.0, noise_multiplier=None, delta=1e-5, clip_norm_l2=1.0,
    grad_sample_mode="hooks", evaluation_noise_multiplier=8.0, evaluation_loss_clip=5.0,
)  # fmt: skip


class Story:
    """Collects events one second apart; each must be one that the machine takes."""

    def __init__(
        self,
        sites: Sequence[str] = ("cesga", "cyfronet", "lumi"),
        *,
        rounds: int = 2,
        privacy: PrivacyPlan | None = None,
    ) -> None:
        self.sites = tuple(sites)
        self.events: list[Event] = []
        self.history = History.new()
        self.state = RunState.new()
        self._at = 1_000.0
        self._privacy = privacy
        plan = run_plan(
            run_id="20261121-run", rounds=rounds, sites=self.sites, quorum=1, deadline_s=60.0,
            privacy=privacy, initial=BLOB,
        )  # fmt: skip
        self.add(RunStarted(at=self._at, plan=plan, connected=self.sites))

    def add(self, event: Event) -> None:
        self.events.append(event)
        self.state, _ = step(self.state, event)
        self.history = append(self.history, event)

    def _now(self) -> float:
        self._at += 1.0
        return self._at

    def sent(self, number: int, kind: WorkKind = "train") -> None:
        self.add(OrdersSent(at=self._now(), round=number, kind=kind, sites=self.sites))

    def accept(self, number: int, site: str, kind: WorkKind = "train") -> None:
        self.add(
            accepted(
                site,
                kind,
                number,
                at=self._now(),
                blob=BLOB,
                examples=500,
                metrics={"loss": 0.5, "accuracy": 0.9},
                privacy=self._spent(number) if self._privacy else None,
            )
        )

    def _spent(self, number: int) -> PrivacySpent:
        return PrivacySpent(
            epsilon_run=number / 2, delta=1e-5, noise_multiplier=1.1, sample_rate=0.1, steps=10,
            unit="row", accountant="RDP (dp-accounting)",
        )  # fmt: skip

    def refuse(self, number: int, site: str, kind: WorkKind = "train", *, detail: str = "") -> None:
        self.add(
            ReplyRefused(
                at=self._now(),
                round=number,
                kind=kind,
                site=site,
                code="work_failed",
                detail=detail,
            )
        )

    def deadline(self, number: int, kind: WorkKind = "train") -> None:
        self.add(DeadlinePassed(at=self._now(), round=number, kind=kind))

    def died(self) -> None:
        self.add(RunResumed(at=self._now(), connected=self.sites))

    def trained(self, number: int) -> None:
        self.add(ModelAggregated(at=self._now(), round=number, model=BLOB, state=None))

    def measured(self, number: int) -> None:
        metrics = {"loss": 1 / number, "accuracy": 1 - 0.4 / number}
        self.add(MetricsAggregated(at=self._now(), round=number, metrics=metrics))

    def whole_round(self, number: int) -> None:
        self.sent(number)
        for site in self.sites:
            self.accept(number, site)
        self.trained(number)
        self.sent(number, "evaluate")
        for site in self.sites:
            self.accept(number, site, "evaluate")
        self.measured(number)

    def summary(self, status: Any = "completed", reason: str = "") -> dict[str, Any]:
        end = Finish(status=status, reason=reason, model=BLOB)
        moved = {site: {"down": 1_234_567, "up": 9_876} for site in self.sites}
        return summary(self.history, end, traffic=moved, model_file="model.safetensors")
