"""What `fedfactory consortium show` tells: authorities, their ends, and who rests on which."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509

from fedfactory.coordinator.membership.consortium import FORMAT, IDENTITY, Consortium
from fedfactory.coordinator.membership.registry_values import Holder
from fedfactory.identity.chains import read_certificates
from fedfactory.identity.enrolment import CERTIFICATE
from fedfactory.identity.facts import public_key_text
from fedfactory.identity.signing import fingerprint

# An issuer is to be renewed while it can still give whole lifetimes.
ISSUER_MARGIN: Final = timedelta(days=60)
ROOT_MARGIN: Final = timedelta(days=365)


def overview(consortium: Consortium) -> dict[str, Any]:
    """Return what there is to know, JSON-ready; times are ISO 8601, UTC.

    Raises:
        IdentityError: the authorities cannot be read.
    """
    issuer = consortium.issuer()
    with consortium.registry() as registry:
        holders = registry.holders()
    own = read_certificates((consortium.home / IDENTITY / CERTIFICATE).read_bytes())[0]
    renew_before = issuer.certificate.not_valid_after_utc - ISSUER_MARGIN
    roots = [_root(root, holders) for root in issuer.roots]
    return {
        "format": FORMAT,
        "consortium": consortium.name,
        "gateway": consortium.gateway,
        "hosts": list(consortium.hosts),
        "coordinator": {
            "key": consortium.coordinator_key,
            "valid_until": _time(own.not_valid_after_utc),
        },
        "issuer": {
            "valid_until": _time(issuer.certificate.not_valid_after_utc),
            "renew_before": _time(renew_before),
        },
        "roots": roots,
        "waiting": [holder for root in roots[1:] for holder in root["holders"]],
        "warnings": _warnings(renew_before, issuer.roots[0]),
    }


def _root(root: x509.Certificate, holders: Sequence[Holder]) -> dict[str, Any]:
    mark = fingerprint(public_key_text(root.public_key()))
    return {
        "fingerprint": mark,
        "valid_from": _time(root.not_valid_before_utc),
        "valid_until": _time(root.not_valid_after_utc),
        "holders": [
            {
                "role": holder.role,
                "name": holder.name,
                "until": _time(datetime.fromtimestamp(holder.not_after, UTC)),
            }
            for holder in holders
            if holder.root == mark
        ],
    }


def _warnings(renew_before: datetime, root: x509.Certificate) -> list[str]:
    now = datetime.fromtimestamp(time.time(), UTC)
    warnings = []
    if now > renew_before:
        warnings.append(
            "the issuer ends soon: fedfactory consortium rotate --issuer --root-key FILE; without"
            " it nobody can be certified"
        )
    if now > root.not_valid_after_utc - ROOT_MARGIN:
        warnings.append("the root ends within a year: fedfactory consortium rotate")
    return warnings


def _time(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%MZ")
