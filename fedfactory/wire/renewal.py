"""Renews an identity's certificate in time: the same key, certified anew.

What comes back is checked against what was trusted before it takes its place: it is for our key,
and its roots follow on the old ones (identity/succession.py), so that a rotation is followed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.errors import IdentityError
from fedfactory.identity.certificates import pem_of
from fedfactory.identity.enrolment import (
    Identity,
    check_identity,
    install_certificate,
    load_identity,
    request_text,
)
from fedfactory.identity.lifetime import due_in_s
from fedfactory.identity.succession import follow, read_bundle
from fedfactory.wire.membership import Certified


class Renewal:
    """Renews the identity in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def due_in_s(self) -> float:
        """Return in how many seconds to renew; 0 or less: now. Raises IdentityError."""
        return due_in_s(load_identity(self._folder))

    def renew(self, ask: Callable[[str], Certified]) -> Identity:
        """Renew by `ask(request)`, a call over a connection with the present certificate.

        Raises:
            IdentityError: the present certificate has ended, or what came is not for our key or not
                of an authority that follows on ours; nothing was changed.
        """
        present = load_identity(self._folder)
        key = serialization.load_pem_private_key(present.key_pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityError(f"{self._folder} holds a key on no NIST curve")
        certified = ask(request_text(key, "renewal"))
        trusted = read_bundle(present.authority_pem).roots
        roots = follow(trusted, certified.authority.encode(), datetime.now(UTC))
        renewed = Identity(
            key_pem=present.key_pem,
            certificate_pem=certified.certificate.encode(),
            authority_pem=pem_of(roots),
        )
        check_identity(renewed, "the renewed certificate")
        install_certificate(self._folder, renewed.certificate_pem, renewed.authority_pem)
        return renewed
