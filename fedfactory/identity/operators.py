"""An operator's or viewer's folder: an identity, and which consortium it is for.

DIR/identity as a daemon's; DIR/consortium.json says the rest. Written at enrolment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError, IdentityError, UsageError
from fedfactory.durable_file import write_durably
from fedfactory.identity.chains import read_certificates
from fedfactory.identity.enrolment import CERTIFICATE, TLS_KEY, Identity, load_identity
from fedfactory.identity.roles import Role
from fedfactory.identity.signing import Signer, fingerprint

IDENTITY: Final = "identity"
MEMBERSHIP_FILE: Final = "consortium.json"
PEOPLE: Final = (Role.OPERATOR, Role.VIEWER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """consortium.json: whose coordinator is where, its key's fingerprint, and who we are there."""

    consortium: str
    gateway: str
    name: str
    role: str
    coordinator_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A person of a consortium, ready to call its gateway and to sign plans with the same key."""

    consortium: str
    gateway: str
    name: str
    role: Role
    coordinator_key: str
    identity: Identity
    signer: Signer


def save_membership(folder: Path, membership: Membership) -> None:
    """Write consortium.json. Raises OSError."""
    write_durably(folder / MEMBERSHIP_FILE, to_json(membership))


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Who a person is, by their folder's files alone. Times are Unix seconds.

    `fingerprint` is that of the key, which sites pin; `fault` says why the certificate does not
    count now, "" if it does.
    """

    consortium: str
    gateway: str
    name: str
    role: str
    coordinator_key: str
    fingerprint: str
    valid_from: float
    valid_until: float
    fault: str


def describe_folder(folder: Path) -> Description:
    """Return who the person is whose folder this is, also if their certificate has ended.

    Raises:
        UsageError: the folder is not one of a person's.
        IdentityError: key or certificate is missing or cannot be read.
    """
    membership, fault = _membership(folder), ""
    try:
        load_identity(folder / IDENTITY)
    except IdentityError as error:
        fault = error.public_message
    try:
        signer = Signer((folder / IDENTITY / TLS_KEY).read_bytes())
        certificate = read_certificates((folder / IDENTITY / CERTIFICATE).read_bytes())[0]
    except OSError as error:
        raise IdentityError(f"{error.filename} cannot be read ({error.strerror})") from error
    return Description(
        consortium=membership.consortium,
        gateway=membership.gateway,
        name=membership.name,
        role=membership.role,
        coordinator_key=membership.coordinator_key,
        fingerprint=fingerprint(signer.public_key),
        valid_from=certificate.not_valid_before_utc.timestamp(),
        valid_until=certificate.not_valid_after_utc.timestamp(),
        fault=fault,
    )


def load_operator(folder: Path) -> Operator:
    """Return the operator or viewer whose folder this is.

    Raises:
        UsageError: the folder is not one of a person's.
        IdentityError: the certificate is missing, ended or not the consortium's.
    """
    membership = _membership(folder)
    identity = load_identity(folder / IDENTITY)
    return Operator(
        consortium=membership.consortium,
        gateway=membership.gateway,
        name=membership.name,
        role=Role(membership.role),
        coordinator_key=membership.coordinator_key,
        identity=identity,
        signer=Signer(identity.key_pem),
    )


def _membership(folder: Path) -> Membership:
    path = folder / MEMBERSHIP_FILE
    try:
        membership = from_json(Membership, path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): `fedfactory enrol INVITATION --as {folder}`"
            " makes an operator's folder; or name yours with --as DIR or $FEDFACTORY_OPERATOR"
        ) from error
    except FedfactoryError as error:
        raise UsageError(f"{path} is damaged ({error.public_message}): enrol anew") from error
    if membership.role not in PEOPLE:
        raise UsageError(f"{path}: role '{membership.role}': expected operator or viewer")
    return membership
