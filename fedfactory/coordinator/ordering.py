"""From a site's plan for a phase to the signed delivery that asks for it."""

from __future__ import annotations

from collections import Counter

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.orders import Order, WorkKey, WorkKind
from fedfactory.contracts.plans import Delivery, Ending, Sending, SignedEnding
from fedfactory.coordinator.anchors import Anchors
from fedfactory.coordinator.settings import RunSettings
from fedfactory.coordinator.site_plan import SitePlan
from fedfactory.identity.signing import Signer


class Orders:
    """Writes the orders of one run and signs each sending with the coordinator's key."""

    def __init__(self, settings: RunSettings, signer: Signer, anchors: Anchors) -> None:
        self._signed = settings.signed
        self._plan_digest = digest_of(settings.signed.terms)
        self._seed = settings.plan.seed
        self._signer = signer
        self._anchors = anchors
        self._sendings: Counter[WorkKey] = Counter()

    def order(self, round_number: int, kind: WorkKind, plan: SitePlan) -> Order:
        """Return the order for one site in one phase."""
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
            plan_digest=self._plan_digest,
        )

    def ending(self, site: str) -> SignedEnding:
        """Return the word for one site that the run is over."""
        terms = self._signed.terms
        ending = Ending(
            coordinator=terms.coordinator,
            run_id=terms.run_id,
            plan_digest=self._plan_digest,
            site=site,
        )
        return SignedEnding(ending=ending, signature=self._signer.sign(ending))

    def delivery(self, order: Order, expires_at: float) -> Delivery:
        """Return the next sending of an order, good until `expires_at` (Unix seconds)."""
        key = order.key()
        self._sendings[key] += 1
        sending = Sending(
            order=order,
            plan=self._signed,
            number=self._sendings[key],
            expires_at=expires_at,
            receipt=self._anchors.of(order.site),
        )
        return Delivery(sending=sending, signature=self._signer.sign(sending))
