"""From a site's plan for a phase to the signed delivery that asks for it."""

from __future__ import annotations

from collections import Counter

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.orders import Order, WorkKind
from fedfactory.contracts.plans import OrderEnvelope, RunEnded, SignedOrder, SignedRunEnded
from fedfactory.coordinator.aggregating.site_plan import SitePlan
from fedfactory.coordinator.anchors import Anchors
from fedfactory.coordinator.run_settings import RunSettings
from fedfactory.identity.signing import Signer
from fedfactory.rounds.events import OrdersSent


class Orders:
    """Writes the orders of one run and signs each sending with the coordinator's key."""

    def __init__(self, settings: RunSettings, signer: Signer, anchors: Anchors) -> None:
        self._signed = settings.plan.signed
        self._terms_digest = digest_of(settings.plan.terms)
        self._seed = settings.plan.seed
        self._signer = signer
        self._anchors = anchors
        self._sendings: Counter[tuple[int, WorkKind, str]] = Counter()

    def order(self, round_number: int, kind: WorkKind, plan: SitePlan) -> Order:
        """Return the order for one site in one phase: the same plan gives the same order."""
        terms = self._signed.terms
        return Order(
            coordinator=terms.coordinator,
            run_id=terms.run_id,
            round=round_number,
            kind=kind,
            site=plan.site,
            task=terms.task,
            task_parameters=terms.task_parameters,
            training=plan.training if kind == "train" else None,
            base=plan.base,
            seed=self._seed,
            privacy=terms.privacy,
            terms_digest=self._terms_digest,
        )

    def ending(self, site: str) -> SignedRunEnded:
        """Return the word for one site that the run is over."""
        terms = self._signed.terms
        ending = RunEnded(
            coordinator=terms.coordinator,
            run_id=terms.run_id,
            terms_digest=self._terms_digest,
            site=site,
        )
        return SignedRunEnded(run_ended=ending, signature=self._signer.sign(ending))

    def count(self, event: OrdersSent) -> None:
        """Count sendings that were journalled, so that their numbers rise across restarts."""
        for site in event.sites:
            self._sendings[event.round, event.kind, site] += 1

    def delivery(self, order: Order, expires_at: float) -> SignedOrder:
        """Return the sending counted last, good until `expires_at` (Unix seconds)."""
        sending = OrderEnvelope(
            order=order,
            signed=self._signed,
            number=self._sendings[order.round, order.kind, order.site],
            expires_at=expires_at,
            receipt=self._anchors.of(order.site),
        )
        return SignedOrder(envelope=sending, signature=self._signer.sign(sending))
