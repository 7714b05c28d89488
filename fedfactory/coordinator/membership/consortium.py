"""A coordinator's home as a consortium's seat: opened by the daemon, rotated by its lead.

The root key is needed here only to found and to rotate. A rotation has two commit points, each one
file replaced: issuer.json names the new root beside the old one, or the new one alone. What depends
on it, the coordinator's own certificate, follows by `coordinator_identity`, however often that is
interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError, IdentityError, RefusedError, UsageError
from fedfactory.contracts.versions import own_version
from fedfactory.coordinator.membership.registry import REGISTRY_FILE, Registry
from fedfactory.coordinator.membership.registry_values import Holder
from fedfactory.durable_file import write_durably
from fedfactory.identity.chains import read_certificates
from fedfactory.identity.enrolment import (
    Identity,
    install_certificate,
    load_identity,
    read_request,
)
from fedfactory.identity.facts import public_key_text
from fedfactory.identity.formats import check_format
from fedfactory.identity.issuer import ISSUER_FILE, Issuer
from fedfactory.identity.lifetime import due_in_s
from fedfactory.identity.roles import Role
from fedfactory.identity.root import Root
from fedfactory.identity.signing import fingerprint

CONSORTIUM_FILE: Final = "consortium.json"
IDENTITY: Final = "identity"
ISSUER: Final = "issuer"
FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsortiumFile:
    """HOME/consortium.json: what outlives every version of the program."""

    format: int
    consortium: str
    gateway: str
    hosts: tuple[str, ...]
    made_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Consortium:
    """A founded consortium at `home`; `hosts` are in the coordinator's certificate."""

    home: Path
    name: str
    gateway: str
    hosts: tuple[str, ...]

    @property
    def coordinator_key(self) -> str:
        """The fingerprint of the coordinator's key, which sites pin. It is for life."""
        return fingerprint(read_request(self.home / IDENTITY).public_key)

    def issuer(self) -> Issuer:
        """Open the issuer. Raises IdentityError."""
        return Issuer(self.home / ISSUER)

    def issuer_stamp(self) -> tuple[int, int] | None:
        """Return what changes when the issuer's file does: inode and time; None if it is away."""
        try:
            found = (self.home / ISSUER / ISSUER_FILE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def registry(self) -> Registry:
        """Open the registry. Raises UsageError, EnvironmentFailedError."""
        return Registry(self.home / REGISTRY_FILE)


def write_consortium(home: Path, *, name: str, gateway: str, hosts: Sequence[str]) -> None:
    """Write consortium.json into a home that is being made. Raises OSError."""
    file = ConsortiumFile(
        format=FORMAT, consortium=name, gateway=gateway, hosts=tuple(hosts), made_by=own_version()
    )
    write_durably(home / CONSORTIUM_FILE, to_json(file))


def open_consortium(home: Path) -> Consortium:
    """Return the consortium whose coordinator's home this is.

    Raises:
        UsageError: no consortium was founded there, or by another version's format.
    """
    home = home.absolute()
    path = home / CONSORTIUM_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): `fedfactory consortium init --home {home}`"
            " founds a consortium"
        ) from error
    check_format(path, text, FORMAT)
    try:
        file = from_json(ConsortiumFile, text)
    except FedfactoryError as error:
        raise UsageError(f"{path} is damaged: {error.public_message}") from error
    return Consortium(home=home, name=file.consortium, gateway=file.gateway, hosts=file.hosts)


def coordinator_identity(consortium: Consortium, lifetime: timedelta) -> Identity:
    """Return the coordinator's identity, certified anew if it is time, or authorities changed.

    The key stays the same: sites pin it. Cheap when there is nothing to do: ask every minute.

    Raises:
        IdentityError: the issuer has ended or cannot be read, or the coordinator's key is gone.
    """
    folder, issuer = consortium.home / IDENTITY, consortium.issuer()
    with suppress(IdentityError):
        identity = load_identity(folder)
        if _is_current(identity, issuer) and due_in_s(identity) > 0:
            return identity
    try:
        request = read_request(folder)
    except (OSError, FedfactoryError) as error:
        raise IdentityError(
            f"{folder} holds no key of the coordinator's: put the last copy of the home back"
        ) from error
    certificate = issuer.sign(
        request.csr_pem, Role.COORDINATOR, consortium.name, lifetime, hosts=consortium.hosts
    )
    install_certificate(folder, certificate, issuer.bundle_pem)
    return load_identity(folder)


def rotate(consortium: Consortium, old: Root, new: Root) -> None:
    """Begin a rotation. The new root must be saved already.

    Raises:
        IdentityError: `old` is not the present root, or a rotation is under way.
    """
    consortium.issuer().rotate(old, new)


def finish_rotation(consortium: Consortium) -> None:
    """Drop the old root, once nobody depends on it any more.

    Raises:
        RefusedError: members or invitations still rest on the old root; names them.
        IdentityError: no rotation is under way.
    """
    issuer = consortium.issuer()
    if waiting := holders_of_old_root(consortium, issuer):
        names = ", ".join(_told(holder) for holder in waiting)
        raise RefusedError(
            f"the old root is still needed by {names}: each moves on when it next renews;"
            " revoke those that will not"
        )
    issuer.finish_rotation()


def holders_of_old_root(consortium: Consortium, issuer: Issuer) -> list[Holder]:
    """Return who would be cut off if only the newest root counted."""
    newest = fingerprint(public_key_text(issuer.roots[0].public_key()))
    with consortium.registry() as registry:
        return [holder for holder in registry.holders() if holder.root != newest]


def _is_current(identity: Identity, issuer: Issuer) -> bool:
    intermediates = read_certificates(identity.certificate_pem)[1:]
    expected = [issuer.certificate, *issuer.shown_crosses]
    return intermediates == expected and identity.authority_pem == issuer.bundle_pem


def _told(holder: Holder) -> str:
    end = datetime.fromtimestamp(holder.not_after, UTC)
    return f"{holder.role} '{holder.name}' (until {end:%Y-%m-%d %H:%M} UTC)"
