"""Serves Enrolment: certifies who was invited, and members anew. What counts is in the registry."""

from __future__ import annotations

import logging
from datetime import timedelta

from fedfactory.contracts.errors import IdentityError
from fedfactory.coordinator.membership.consortium import Consortium
from fedfactory.coordinator.membership.inviting import invite, issued
from fedfactory.coordinator.membership.registry import INVITED_AS, Registry
from fedfactory.coordinator.membership.registry_rows import Issued
from fedfactory.identity.certificates import requested_key
from fedfactory.identity.facts import CertificateFacts, public_key_text
from fedfactory.identity.issuer import Issuer
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.signing import fingerprint
from fedfactory.wire.membership import (
    Certified,
    EnrolRequest,
    Invitation,
    InviteRequest,
    RenewRequest,
)

log = logging.getLogger("fedfactory.coordinator.membership.registrar")


class Registrar:
    """Enrols and renews for `lifetime`. Usable from several threads."""

    def __init__(
        self,
        consortium: Consortium,
        registry: Registry,
        issuer: Issuer,
        lifetime: timedelta,
    ) -> None:
        self._consortium = consortium
        self._registry = registry
        self._issuer = issuer
        self._lifetime = lifetime

    def invite(self, wanted: InviteRequest, *, by: str, gateway: str | None = None) -> Invitation:
        """Make an invitation; see `inviting.invite`."""
        return invite(
            self._consortium, self._registry, self._issuer, wanted, by=by, gateway=gateway
        )

    def enrol(
        self, peer: Peer, facts: CertificateFacts, wanted: EnrolRequest, version: str
    ) -> Certified:
        """Certify the key of an invited peer; `facts` are of its connection's certificate.

        Raises:
            IdentityError: the connection is not an invitation's, or that does not count; the
                request does not prove its key, or that key is or was another's.
        """
        if peer.role is not Role.INVITED:
            raise IdentityError("only the invited enrol; a member renews")
        key = requested_key(wanted.csr.encode())
        chain = b""

        def certify(admitted: Peer) -> Issued:
            nonlocal chain
            chain = self._issuer.sign_key(key, admitted.role, admitted.name, self._lifetime)
            return issued(chain, self._issuer)

        try:
            admitted = self._registry.accept(
                facts.public_key, public_key_text(key), certify, version
            )
        except IdentityError as error:  # a used invitation may have been seen by a stranger
            log.warning("an enrolment as '%s' is refused: %s", peer.name, error.public_message)
            raise
        log.info("%s '%s' is enrolled", admitted.role, admitted.name)
        return self._certified(chain)

    def renew(
        self, peer: Peer, facts: CertificateFacts, wanted: RenewRequest, version: str
    ) -> Certified:
        """Certify a member's key anew; `facts` are of the certificate in use.

        Raises:
            IdentityError: the request is for another key, or the member was cut off.
        """
        if peer.role not in INVITED_AS:
            raise IdentityError(f"a {peer.role} does not renew here")
        key = requested_key(wanted.csr.encode())
        if fingerprint(public_key_text(key)) != fingerprint(facts.public_key):
            raise IdentityError(
                "a renewal is for the key in use: for another key, ask for a new invitation"
            )
        self._registry.standing(peer, facts)
        chain = self._issuer.sign_key(key, peer.role, peer.name, self._lifetime)
        self._registry.renewed(peer, issued(chain, self._issuer), version)
        log.info("%s '%s' has renewed", peer.role, peer.name)
        return self._certified(chain)

    def _certified(self, chain: bytes) -> Certified:
        authority = self._issuer.succession_pem.decode()
        return Certified(certificate=chain.decode(), authority=authority)
