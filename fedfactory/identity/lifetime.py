"""When a certificate is to be renewed: when a third of its lifetime is left."""

from __future__ import annotations

import time
from typing import Final

from fedfactory.identity.chains import read_certificates
from fedfactory.identity.enrolment import Identity

LEFT_AT_RENEWAL: Final = 1 / 3


def due_in_s(identity: Identity) -> float:
    """Return in how many seconds an identity is to be renewed; 0 or less: now."""
    certificate = read_certificates(identity.certificate_pem)[0]
    begin = certificate.not_valid_before_utc.timestamp()
    end = certificate.not_valid_after_utc.timestamp()
    return end - LEFT_AT_RENEWAL * (end - begin) - time.time()


def ends_at(identity: Identity) -> float:
    """Return when an identity's certificate ends, in Unix seconds."""
    return read_certificates(identity.certificate_pem)[0].not_valid_after_utc.timestamp()
