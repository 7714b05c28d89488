"""An operator's or viewer's folder: an identity, and which consortium it is for.

DIR/identity as a daemon's; DIR/consortium.json says the rest. Written at enrolment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError, UsageError
from fedfactory.durable_file import write_durably
from fedfactory.identity.enrolment import Identity, load_identity
from fedfactory.identity.roles import Role
from fedfactory.identity.signing import Signer

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


def load_operator(folder: Path) -> Operator:
    """Return the operator or viewer whose folder this is.

    Raises:
        UsageError: the folder is not one of a person's.
        IdentityError: the certificate is missing, ended or not the consortium's.
    """
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
