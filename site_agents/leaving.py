"""All that would leave a site with one update, in one value. Pure.

Who is asked, and what they decide, is in `approvals`; how it is shown beside the plan,
in `comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.model import BlobRef, TensorSpec
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.plans import OrderEnvelope, RunTerms
from fedfactory.contracts.privacy import PrivacySpent
from fedfactory.contracts.updates import Update

ID_DIGITS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """All that would leave with one update, and the plan that it is held against.

    `update` is the digest of the whole Update; `declared` and `tensors` are what the task declares
    and what the update's file holds (empty for `evaluate`). `norm_l2` is over all its tensors.
    `epsilon_charged` is what this work took from `lineage`, `privacy` what holds for the run so
    far; None without differential privacy.
    """

    update: str
    site: str
    coordinator: str
    run_id: str
    round: int
    kind: WorkKind
    task: str
    declared: tuple[TensorSpec, ...]
    tensors: tuple[TensorSpec, ...]
    blob: BlobRef | None
    norm_l2: float | None
    metrics: Mapping[str, float]
    examples: int | None
    source: str | None
    lineage: str | None
    epsilon_charged: float | None
    privacy: PrivacySpent | None
    terms_digest: str
    plan: RunTerms

    @property
    def id(self) -> str:
        """What a person calls it by: of this very update, another one has another."""
        return self.update.removeprefix("sha256:")[:ID_DIGITS]


def leaving(
    sending: OrderEnvelope,
    update: Update,
    *,
    declared: tuple[TensorSpec, ...],
    tensors: tuple[TensorSpec, ...],
    norm_l2: float | None,
    source: str | None,
    lineage: str | None,
    epsilon_charged: float | None,
) -> Leaving:
    """Return what a person is shown of an update; see Leaving."""
    order = sending.order
    return Leaving(
        update=digest_of(update),
        site=order.site,
        coordinator=order.coordinator,
        run_id=order.run_id,
        round=order.round,
        kind=order.kind,
        task=order.task,
        declared=declared,
        tensors=tensors,
        blob=update.payload.blob if update.payload else None,
        norm_l2=norm_l2,
        metrics=update.metrics,
        examples=update.examples,
        source=source,
        lineage=lineage,
        epsilon_charged=epsilon_charged,
        privacy=update.privacy,
        terms_digest=order.terms_digest,
        plan=sending.signed.terms,
    )
