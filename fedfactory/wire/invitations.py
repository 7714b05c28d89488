"""Reads the file of an invitation, and makes of it what one enrols with.

A file that was cut, altered or is out of date is found here, before anybody is called. The
sentences never hold the token.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import (
    FedfactoryError,
    IdentityError,
    ProtocolError,
    RefusedError,
    UsageError,
)
from fedfactory.identity.bootstrap import bootstrap_key
from fedfactory.identity.certificates import pem_of
from fedfactory.identity.chains import read_certificates, root_of
from fedfactory.identity.enrolment import Identity
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.succession import read_bundle
from fedfactory.wire.membership import Invitation

MAX_BYTES: Final = 256 * 1024
_FINGERPRINT: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ENROLLED_AS: Final = (Role.SITE, Role.OPERATOR, Role.VIEWER)
_MAX_PORT: Final = 65535


def read_invitation(path: Path) -> Invitation:
    """Return the invitation in a file, checked.

    Raises:
        UsageError: the file cannot be read, is no invitation, or was altered.
        RefusedError: it has expired, and the coordinator would not take it.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the invitation {path} cannot be read ({error.strerror})") from error
    if len(text) > MAX_BYTES:
        raise UsageError(f"{path}: larger than {MAX_BYTES} bytes; this is no invitation")
    try:
        return parse_invitation(text, now=time.time())
    except FedfactoryError as error:
        kind = RefusedError if isinstance(error, RefusedError) else UsageError
        raise kind(f"{path}: {error.public_message}", diagnostic=error.diagnostic) from error


def parse_invitation(text: bytes, *, now: float) -> Invitation:
    """Return the invitation that a file's bytes hold, at Unix time `now`.

    Raises:
        ProtocolError: these bytes are no invitation.
        IdentityError: its parts do not belong together.
        RefusedError: it has expired.
    """
    try:
        invitation = from_json(Invitation, text)
    except ProtocolError as error:
        raise ProtocolError(
            "this is no invitation, or it was altered or cut: ask for it again",
            diagnostic=error.public_message,
        ) from error
    if invitation.role not in _ENROLLED_AS:
        raise IdentityError(f"it invites a '{invitation.role[:20]}', which cannot be enrolled")
    Peer(role=Role(invitation.role), name=invitation.name)
    Peer(role=Role.COORDINATOR, name=invitation.consortium)
    check_address(invitation.gateway)
    keys = (invitation.coordinator_key, *invitation.operator_keys.values())
    if not all(_FINGERPRINT.fullmatch(key) for key in keys):
        raise ProtocolError("a key's fingerprint is not of the form sha256:<64 hex digits>")
    if invitation.expires_at <= now:
        when = datetime.fromtimestamp(max(0.0, invitation.expires_at), UTC)
        raise RefusedError(
            f"it expired on {when:%Y-%m-%d %H:%M} UTC: ask the consortium for a new one"
        )
    _check_certificate(invitation, now)
    return invitation


def invitation_identity(invitation: Invitation) -> Identity:
    """Return what to call the gateway with: the token's key, certified for enrolling alone.

    Raises:
        IdentityError: the token is none, or its authorities cannot be read.
    """
    key = bootstrap_key(invitation.token).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Identity(
        key_pem=key,
        certificate_pem=invitation.certificate.encode(),
        authority_pem=pem_of(read_bundle(invitation.authority.encode()).roots),
    )


def check_address(address: str) -> None:
    """Check that an address is host:port. Raises ProtocolError."""
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 <= int(port[:6]) <= _MAX_PORT
    if not (host and is_port and host.isprintable() and " " not in host):
        raise ProtocolError("the gateway's address is not host:port, as in hub.example.org:443")


def _check_certificate(invitation: Invitation, now: float) -> None:
    altered = "its parts do not belong together: it was altered or cut; ask for it again"
    chain = read_certificates(invitation.certificate.encode())
    roots = read_bundle(invitation.authority.encode()).roots
    if chain[0].public_key() != bootstrap_key(invitation.token).public_key():
        raise IdentityError(altered)
    try:
        names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise IdentityError(altered) from error
    if uris != [Peer(role=Role.INVITED, name=invitation.name).uri]:
        raise IdentityError(altered)
    try:
        root_of(chain, roots, datetime.fromtimestamp(now, UTC))
    except (ValueError, OverflowError) as error:
        raise IdentityError(altered) from error
