"""What a site answers: an update, or a refusal by code. Either names the work it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedfactory.contracts.bounds import Count, Metrics, Seconds, check_fields
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.plans import Anchor
from fedfactory.contracts.privacy import PrivacySpent, PrivacyStanding
from fedfactory.contracts.refusals import REFUSALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The arrays an update carries. `delta`: trained minus base, float tensors only."""

    form: Literal["delta"]
    blob: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Finished work. `payload` is None for `evaluate`; `seconds` is the time the work took.

    `examples` counts the records used; under differential privacy it is the site's public size, and
    `seconds` are whole ones.
    `privacy` states what guarantee holds, None without differential privacy.
    """

    work: WorkKey
    payload: Payload | None
    examples: Count | None
    metrics: Metrics
    seconds: Seconds
    privacy: PrivacySpent | None

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.payload is None) != (self.work.kind == "evaluate"):
            raise ProtocolError("Update.payload: present exactly when the work is 'train'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Work that was not done. `code` is a key of REFUSALS."""

    work: WorkKey
    code: str

    def __post_init__(self) -> None:
        if self.code not in REFUSALS:
            raise ProtocolError("Refusal.code: not a known code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What travels: exactly one of update and refusal, and where the site's books stand.

    `standing` is what holds for the run after all that was charged, None without differential
    privacy, and with refusals that come before anything of the run was charged.
    """

    update: Update | None
    refusal: Refusal | None
    anchor: Anchor | None
    standing: PrivacyStanding | None = None

    def __post_init__(self) -> None:
        if (self.update is None) == (self.refusal is None):
            raise ProtocolError("Reply: expected exactly one of update, refusal")

    @property
    def work(self) -> WorkKey:
        """The work it answers."""
        answer = self.update or self.refusal
        assert answer is not None
        return answer.work
