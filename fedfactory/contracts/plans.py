"""What an operator signs once, and what a coordinator signs with each sending. Values only.

A site pins both keys in its policy: the consortium's authority alone is not enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fedfactory.contracts.bounds import Count, Ordinal, Positive, UnixTime
from fedfactory.contracts.errors import ValueRangeError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Order, Scalar, TrainParameters
from fedfactory.contracts.privacy import PrivacyPlan

# sync: rounds. async: no site waits for another.
Mode = Literal["sync", "async"]
# The strategy whose class an option names, and that option.
CUSTOM_STRATEGY: Final = "custom"
STRATEGY_TARGET: Final = "_target_"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTerms:
    """All that a run may ask of its sites. What no term allows, no order of the run may ask.

    `initial` is the model that the run starts from: the base of round 1 in sync mode (in async mode
    a site's first order starts from the newest model). `strategy` is the strategy's name and
    `strategy_options` its own fields; for 'custom', `_target_` names its class.
    A strategy may change `lr` and `momentum` between rounds, never above what is signed here, and
    `proximal_mu`; whatever sampling and cost derive from (`local_epochs`, `batch_size`,
    `max_steps`) is as signed here, or less work.
    `max_update_norm_l2` bounds an update's norm over all its tensors (None: see update_norms).
    `not_after` is Unix seconds.
    """

    coordinator: str
    run_id: str
    sites: tuple[str, ...]
    task: str
    task_parameters: Mapping[str, Scalar]
    initial: BlobRef
    strategy: str
    strategy_options: Mapping[str, Scalar | tuple[Scalar, ...]]
    mode: Mode
    training: TrainParameters
    rounds: Ordinal
    evaluate: bool
    privacy: PrivacyPlan | None
    max_model_bytes: Count
    max_update_norm_l2: Positive | None
    nonce: str
    not_after: UnixTime

    def __post_init__(self) -> None:
        norm = self.max_update_norm_l2
        if norm is not None and not (math.isfinite(norm) and norm > 0):
            raise ValueRangeError("max_update_norm_l2", norm, "a number above 0, or null")

    @property
    def strategy_name(self) -> str:
        """What policies call the strategy: its name, or the class that a custom one names."""
        target = self.strategy_options.get(STRATEGY_TARGET)
        is_class = self.strategy == CUSTOM_STRATEGY and isinstance(target, str)
        return str(target) if is_class else self.strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature over canonical JSON: by whose public key (PEM), and its bytes in base64."""

    public_key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTerms:
    """A run's terms under its operator's signature."""

    terms: RunTerms
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Where a site's ledger and audit chain stand: their lengths and heads (sha256:<hex>).

    Kept by the coordinator, so that a site restored from an old copy finds itself behind.
    """

    site: str
    ledger: str
    ledger_sequence: Count
    ledger_head: str
    audit_length: Count
    audit_head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderEnvelope:
    """One sending of an order, as the coordinator signs it.

    `number` counts sendings, `expires_at` is Unix seconds, `receipt` is the last anchor that the
    coordinator holds of this site (None: it holds none).
    """

    order: Order
    signed: SignedTerms
    number: Ordinal
    expires_at: UnixTime
    receipt: Anchor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """A run is over: what it holds of a site's privacy budget and has not reserved returns."""

    coordinator: str
    run_id: str
    terms_digest: str
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRunEnded:
    """What travels to a site when a run is over. The site answers with its Anchor."""

    run_ended: RunEnded
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedOrder:
    """What travels to a site: an order."""

    envelope: OrderEnvelope
    signature: Signature
