"""Enrols with an invitation: keys are made here, certified by the gateway, and put in place.

All happens in a folder beside the identity's (`identity.new`), which takes its place at the end, so
that an identity in use is replaced whole or not at all. Cut short anywhere, it goes on from what
lies there: the coordinator certifies the same key again for the same token. The token is gone from
there before the identity is in place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    FedfactoryError,
    IdentityError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from fedfactory.durable_file import remove_durably, sync_folder, write_durably
from fedfactory.identity.bootstrap import bootstrap_key
from fedfactory.identity.certificates import pem_of
from fedfactory.identity.enrolment import (
    TLS_KEY,
    Identity,
    check_identity,
    install_certificate,
    is_enrolled,
    load_identity,
    read_request,
    request_identity,
)
from fedfactory.identity.facts import public_key_text
from fedfactory.identity.roles import Role
from fedfactory.identity.signing import fingerprint
from fedfactory.identity.succession import follow, read_bundle
from fedfactory.wire.invitations import invitation_identity, read_invitation
from fedfactory.wire.membership import Certified, EnrolRequest, Invitation

INVITATION: Final = "invitation.json"
_ENROLLED_WITH: Final = "enrolled-with"
CALL_TIMEOUT_S: Final = 30.0


def enrol_identity(folder: Path, invitation: Invitation | None, address: str | None = None) -> None:
    """Enrol the identity `folder`, by the gateway at `address` (None: the invitation's own).

    Without an invitation, one that was cut short is ended. Done before with the same invitation, it
    is not done again.

    Raises:
        UnreachableError: the gateway cannot be reached; try again later.
        RefusedError: the coordinator does not take the invitation, or it has expired.
        IdentityError: who answers is not the coordinator.
        UsageError: the invitation that lies there is damaged; or nothing lies there.
        OSError: a file could not be written.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock(folder):
        if invitation is not None:
            _begin(folder, invitation)
        elif not _is_pending(folder):
            raise UsageError(f"{folder}: no invitation lies here; enrol with one's file")
        _finish(folder, address)


def is_under_way(folder: Path) -> bool:
    """Whether an enrolment of the identity `folder` was begun and not ended."""
    return _is_pending(folder) or _beside(folder, "old").exists()


def _is_pending(folder: Path) -> bool:
    new = _beside(folder, "new")
    return is_enrolled(new) or (new / INVITATION).exists()


def _begin(folder: Path, invitation: Invitation) -> None:
    """Lay an invitation down, unless `folder`, or what is to replace it, is enrolled with it."""
    new, mark = _beside(folder, "new"), _mark(invitation)
    for made in (new, folder):
        if is_enrolled(made) and _enrolled_with(made) == mark:
            return
    if _enrolled_with(new) != mark:  # else its keys may have been admitted already: keep them
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        write_durably(new / _ENROLLED_WITH, mark)
    write_durably(new / INVITATION, to_json(invitation))
    sync_folder(new.parent)


def _finish(folder: Path, address: str | None) -> None:
    new, old = _beside(folder, "new"), _beside(folder, "old")
    if _is_pending(folder):
        if not is_enrolled(new):
            invitation = read_invitation(new / INVITATION)
            request_identity(new, Role(invitation.role), invitation.name)
            try:
                certified = _ask(new, invitation, address or invitation.gateway)
            except RefusedError:
                remove_durably(new / INVITATION)  # it must not stand in the way of what is enrolled
                raise
            _install(new, certified, invitation)
        load_identity(new)
        for partial in new.glob(".*.part"):  # of a write that was killed: keys, or the token
            partial.unlink()
        remove_durably(new / INVITATION)
        if folder.exists():
            if old.exists():
                shutil.rmtree(old)
            folder.replace(old)
        new.replace(folder)
        sync_folder(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def _install(new: Path, certified: Certified, invitation: Invitation) -> None:
    """Install what came back: it is for the key made here, its roots follow on the invitation's."""
    trusted = read_bundle(invitation.authority.encode()).roots
    roots = follow(trusted, certified.authority.encode(), datetime.now(UTC))
    identity = Identity(
        key_pem=(new / TLS_KEY).read_bytes(),
        certificate_pem=certified.certificate.encode(),
        authority_pem=pem_of(roots),
    )
    check_identity(identity, "the certificate that the coordinator sent")
    install_certificate(new, identity.certificate_pem, identity.authority_pem)


def _enrolled_with(made: Path) -> str | None:
    with suppress(OSError):
        return (made / _ENROLLED_WITH).read_text()
    return None


def _mark(invitation: Invitation) -> str:
    """Tell invitations apart without their tokens: by the fingerprint of the token's key."""
    return fingerprint(public_key_text(bootstrap_key(invitation.token).public_key()))


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time enrol an identity: an agent and a person may both try."""
    handle = os.open(_beside(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _ask(new: Path, invitation: Invitation, address: str) -> Certified:
    import grpc

    from fedfactory.wire.rpc.service import EnrolmentCalls
    from fedfactory.wire.tls import open_channel

    wanted = EnrolRequest(csr=read_request(new).csr)
    with open_channel(address, invitation_identity(invitation)) as channel:
        try:
            return EnrolmentCalls(channel).enrol(wanted, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            # Every error of a call is a grpc.Call too; the types do not say so.
            call = cast("grpc.Call", error)
            raise _refusal(call.code(), str(call.details()), address, invitation) from error


def _refusal(code: object, details: str, address: str, invitation: Invitation) -> FedfactoryError:
    import grpc

    if code in (
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
    ):
        return RefusedError(f"the coordinator does not take the invitation: {details}")
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return IdentityError(
            f"who answers at {address} is not the coordinator of '{invitation.consortium}': check"
            " the address with the consortium; a proxy that opens TLS is refused, too",
            diagnostic=details,
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return UnreachableError(
            f"the gateway {address} cannot be reached: check the address, your firewall and proxy"
            " (https_proxy, no_proxy), and that the coordinator runs; then enrol again",
            diagnostic=details,
        )
    return EnvironmentFailedError(
        f"the gateway {address} could not enrol us ({details}): try again later"
    )


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}")
