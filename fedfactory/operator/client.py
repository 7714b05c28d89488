"""An operator's calls on a coordinator: one method per wish, values in and out, errors of our tree.

The wire forms are wire/rpc/service.py's; what each wish means is the coordinator's desk's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

import grpc

from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    FedfactoryError,
    IdentityError,
    ProtocolError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.questions import LogsRequest, SignedLogsRequest, SiteLogs
from fedfactory.contracts.revocations import (
    MOST_REASON,
    OperatorRevocation,
    SignedRevocation,
)
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.durable_file import sync_folder
from fedfactory.identity.operators import Operator
from fedfactory.identity.roles import Role
from fedfactory.identity.signing import fingerprint
from fedfactory.wire.membership import (
    Certified,
    Invitation,
    InviteRequest,
    Members,
    MembersRequest,
    RenewRequest,
    RevokeRequest,
)
from fedfactory.wire.operations import (
    LogsOfSite,
    ModelFound,
    ModelRequest,
    ResumeRequest,
    RunRow,
    Runs,
    RunsRequest,
    StopMode,
    StopRequest,
    Submitted,
    Watched,
    WatchRequest,
)
from fedfactory.wire.rpc.service import EnrolmentCalls, OperationsCalls
from fedfactory.wire.rpc.transfers import Transfers
from fedfactory.wire.tls import open_channel

CALL_TIMEOUT_S: Final = 30.0
SUBMIT_TIMEOUT_S: Final = 120.0  # the coordinator asks every site before it answers
QUESTION_LIFETIME_S: Final = 300.0
MOST_RUNS: Final = 1000
Value = TypeVar("Value")


class OperatorClient:
    """Calls on the coordinator of `operator`, at `address` or where its folder says.

    Usable from several threads.

    Raises, from every call:
        UnreachableError: no answer; the same call may be tried again.
        IdentityError: who answers is not the coordinator that the folder was enrolled with.
        RefusedError: the coordinator does not do it, or not for us; the sentence is its own.
        UsageError: it knows no such run, model or member.
    """

    def __init__(self, operator: Operator, address: str | None = None) -> None:
        self.operator = operator
        self.address = address or operator.gateway
        self._channel = open_channel(self.address, operator.identity)
        self._calls = OperationsCalls(self._channel)
        self._transfers = Transfers(self._channel)

    # ---- runs ------------------------------------------------------------------------------

    def submit(self, plan: RunPlan) -> Submitted:
        """Ask for a run; what it names as arrays was uploaded before."""
        return self._said(self._calls.submit, plan, SUBMIT_TIMEOUT_S)

    def runs(self, limit: int = MOST_RUNS) -> tuple[RunRow, ...]:
        """Return the coordinator's runs, newest first."""
        return self.listed_runs(limit).runs

    def listed_runs(self, limit: int = MOST_RUNS) -> Runs:
        """Return the coordinator's runs, newest first, and those that it could not open."""
        return self._said(self._calls.list_runs, RunsRequest(limit=limit))

    def watch(self, run_id: str, after: int = 0, *, follow: bool = True) -> Iterator[Watched]:
        """Yield a run's events from number `after` on, at its end the summary.

        With `follow` as they happen, without it those there are now.
        """
        wanted = WatchRequest(run_id=run_id, after=after, follow=follow)
        try:
            yield from self._calls.watch(wanted)
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def stop(self, run_id: str, mode: StopMode) -> str:
        """Stop a run; return the coordinator's sentence."""
        return self._said(self._calls.stop, StopRequest(run_id=run_id, mode=mode)).message

    def resume(self, run_id: str) -> str:
        """Let a suspended or ended run go on; return the coordinator's sentence."""
        return self._said(self._calls.resume, ResumeRequest(run_id=run_id)).message

    def logs(self, run_id: str, site: str) -> SiteLogs | None:
        """Ask a site for what it lets out of its record of a run; None if it did not answer."""
        wanted = LogsRequest(
            coordinator=self.operator.consortium,
            run_id=run_id,
            site=site,
            nonce=secrets.token_hex(16),
            not_after=time.time() + QUESTION_LIFETIME_S,
        )
        signed = SignedLogsRequest(request=wanted, signature=self.operator.signer.sign(wanted))
        return self._said(self._calls.logs, LogsOfSite(signed=signed)).logs

    # ---- arrays ----------------------------------------------------------------------------

    def find_model(self, run_id: str, number: int | None) -> ModelFound:
        """Return a run's model of round `number`, None for the one that the run keeps."""
        return self._said(self._calls.find_model, ModelRequest(run_id=run_id, round=number))

    def upload(self, path: Path, ref: BlobRef) -> None:
        """Send the file `path`, whose digest and length are `ref`; a cut transfer goes on."""
        with self._transfer():
            self._transfers.upload(path, ref)

    def download(self, ref: BlobRef, into: Path) -> None:
        """Fetch a blob to `into`, durable and whole or not there at all; its digest is checked."""
        arrived = into.with_name(f".{into.name}.arrived")
        with self._transfer():
            self._transfers.download(ref, arrived)
        handle = os.open(arrived, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        arrived.replace(into)
        sync_folder(into.parent)

    # ---- members ---------------------------------------------------------------------------

    def invite(self, role: str, name: str, lifetime_s: float) -> Invitation:
        """Invite somebody; what returns is a secret."""
        wanted = InviteRequest(role=role, name=name, lifetime_s=lifetime_s)
        return self._said(self._calls.invite, wanted)

    def members(self) -> Members:
        """Return everybody who was invited or enrolled."""
        return self._said(self._calls.list_members, MembersRequest())

    def revoke(self, role: str, name: str, reason: str) -> str:
        """Cut a member off; return the coordinator's sentence.

        An operator's key is revoked under our own signature besides, for the sites that pin it.
        """
        signed = self._revocation(name, reason) if role == Role.OPERATOR else None
        wanted = RevokeRequest(role=role, name=name, reason=reason, signed=signed)
        return self._said(self._calls.revoke, wanted).message

    def renew(self, request: str) -> Certified:
        """Have the key of a signing request (PEM), which is our own, certified anew."""
        return self._said(EnrolmentCalls(self._channel).renew, RenewRequest(csr=request))

    def close(self) -> None:
        """Hang up; calls under way end with an error."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _revocation(self, name: str, reason: str) -> SignedRevocation | None:
        """Sign that an operator's key no longer counts; None for one who has none."""
        found = (m for m in self.members().members if (m.role, m.name) == (Role.OPERATOR, name))
        member = next(found, None)
        if member is None or member.fingerprint is None:
            return None
        own = fingerprint(self.operator.signer.public_key)
        if member.fingerprint == own and name != self.operator.name:
            raise IdentityError(f"the coordinator gives your own key for '{name}': ask who runs it")
        told = OperatorRevocation(
            coordinator=self.operator.consortium,
            operator=name,
            key=member.fingerprint,
            reason=reason[:MOST_REASON],
            at=time.time(),
        )
        return SignedRevocation(revocation=told, signature=self.operator.signer.sign(told))

    # ---- how a call is made ----------------------------------------------------------------

    def _said(
        self, call: Callable[..., Value], wanted: Any, timeout_s: float = CALL_TIMEOUT_S
    ) -> Value:
        try:
            return call(wanted, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._translated(error) from error

    @contextlib.contextmanager
    def _transfer(self) -> Iterator[None]:
        try:
            yield
        except EnvironmentFailedError as error:
            raise UnreachableError(
                f"the transfer with the coordinator at {self.address} broke off: try again",
                diagnostic=error.diagnostic,
            ) from error
        except IdentityError as error:
            raise RefusedError(error.public_message, diagnostic=error.diagnostic) from error

    def _translated(self, error: grpc.RpcError) -> FedfactoryError:
        # Every error of a call is a grpc.Call too; the types do not say so.
        call = cast("grpc.Call", error)
        return told_error(call.code(), str(call.details()), self.address)


def told_error(code: grpc.StatusCode, details: str, address: str) -> FedfactoryError:
    """Return the error that a call's status is, for the coordinator at `address`. Pure."""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return IdentityError(
            f"{address} is not the coordinator that this folder was enrolled with: check the"
            " address, or ask for a new invitation",
            diagnostic=details,
        )
    if code is grpc.StatusCode.NOT_FOUND:
        return UsageError(details)
    if code in (
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ALREADY_EXISTS,
    ):
        return RefusedError(f"the coordinator refuses: {details}")
    if code is grpc.StatusCode.INTERNAL:
        return EnvironmentFailedError(
            f"the coordinator at {address} failed at this: ask whoever runs it what its log says",
            diagnostic=details,
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ProtocolError(
            "the coordinator does not understand this program: compare `fedfactory version` there"
            " and here",
            diagnostic=f"{code.name}: {details}",
        )
    return UnreachableError(
        f"the coordinator at {address} cannot be reached: check the address and your network, or"
        " ask whether it runs",
        diagnostic=f"{code.name}: {details}",
    )
