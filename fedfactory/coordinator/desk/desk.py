"""What operators ask of the coordinator (wire/operations.py): the desk answers, on any thread.

Who may call what is decided at the gateway, which gives every method the caller and a value. What
is wrong with a wish is raised: UnknownNameError, RefusedError, IdentityError, UsageError.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import IdentityError, RefusedError, UsageError
from fedfactory.contracts.questions import Query, SignedQuery
from fedfactory.contracts.revocations import SignedRevocation
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.coordinator.anchors import Anchors
from fedfactory.coordinator.coordinator_config import CoordinatorConfig
from fedfactory.coordinator.desk.agreement import why_not_resumed
from fedfactory.coordinator.desk.fitness import turned_away, unfit_sites
from fedfactory.coordinator.desk.submitting import ANCHORS, Submitting
from fedfactory.coordinator.desk.watching import find_model, kept_models, watch
from fedfactory.coordinator.gateway.blobs import blob_path
from fedfactory.coordinator.running.checkpoints import MODELS
from fedfactory.coordinator.runs import Runs, StopWish
from fedfactory.coordinator.schedule import Schedule
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.signing import Signer, verify
from fedfactory.wire import operations
from fedfactory.wire.membership import (
    Invitation,
    InviteRequest,
    Member,
    Members,
    MembersRequest,
    RevokeRequest,
)
from fedfactory.wire.operations import (
    Done,
    Finding,
    LogsGiven,
    LogsOfSite,
    ModelFound,
    ModelRequest,
    ResumeRequest,
    RunsRequest,
    StopRequest,
    Submitted,
    Watched,
    WatchRequest,
)

if TYPE_CHECKING:
    from fedfactory.coordinator.gateway.gateway import Gateway
    from fedfactory.coordinator.membership.registrar import Registrar
    from fedfactory.coordinator.membership.registry import Registry

log = logging.getLogger("fedfactory.coordinator")

LOGS_TIMEOUT_S: Final = 10.0
LONGEST_WISH_S: Final = 3600.0
MOST_ROWS: Final = 10_000
MOST_EVENTS: Final = 2**63 - 1  # the largest number that a journal can hold
MOST_REASON: Final = 300  # characters; whoever lists the members is told it


class Desk:
    """`gateway` is set once there is one: it serves the desk, and the desk asks through it.

    `address` is what invitations name instead of the consortium's (None: that), once it is known.
    `wake` hurries the daemon.
    """

    gateway: Gateway
    address: str | None = None

    def __init__(
        self,
        config: CoordinatorConfig,
        runs: Runs,
        schedule: Schedule,
        *,
        registry: Registry,
        registrar: Registrar,
        signer: Signer,
        wake: threading.Event,
    ) -> None:
        self._config = config
        self._runs = runs
        self._schedule = schedule
        self._registry = registry
        self._registrar = registrar
        self._signer = signer
        self._wake = wake
        self._submitting = Submitting(
            config,
            runs,
            key_of=self._key_of,
            upload=self._upload,
            take=self._take,
            unfit=self._unfit,
            waiting=lambda: len(schedule.queue()),
        )

    # ---- runs ------------------------------------------------------------------------------

    def submit(self, peer: Peer, plan: RunPlan) -> Submitted:
        """Take a run, or say why not; see submitting.py."""
        told = self._submitting.submit(peer, plan)
        if told.run_id is None:
            log.info("a run of %s was refused: %s", peer.name, ascii(told.reason[:MOST_REASON]))
        else:
            log.info("run %s of %s was taken", told.run_id, peer.name)
            self._wake.set()
        return told

    def list_runs(self, peer: Peer, wanted: RunsRequest) -> operations.Runs:
        """Return the newest runs first."""
        del peer
        newest = self._runs.all()[::-1][: max(0, min(wanted.limit, MOST_ROWS))]
        rows = tuple(self._schedule.row(run) for run in newest)
        return operations.Runs(runs=rows, left_out=self._runs.left_out())

    def watch(self, peer: Peer, wanted: WatchRequest) -> Iterator[Watched]:
        """Return a run's events as they come, then its summary; see watching.py."""
        del peer
        run = self._runs.find(wanted.run_id)
        run.check_form()
        return watch(
            run,
            min(max(0, wanted.after), MOST_EVENTS),
            follow=wanted.follow,
            status=lambda: self._schedule.status(run),
        )

    def stop(self, peer: Peer, wanted: StopRequest) -> Done:
        """Let a run end, after the round under way or now; one that waits begins none for it."""
        run = self._runs.find(wanted.run_id)
        if run.ended:
            raise RefusedError(f"the run {run.run_id} is over: {run.summary()['status']}")
        run.check_form()
        under_way = self._schedule.status(run) == "running"
        after_round = under_way and wanted.mode == "after_round"
        run.wish_stop(StopWish(reason=f"stopped by {peer.name}", after_round=after_round))
        self._wake.set()
        log.info("%s stops run %s (%s)", peer.name, run.run_id, wanted.mode)
        when = "after the round under way" if after_round else "now"
        return Done(message=f"the run {run.run_id} stops {when}; its last finished model is kept")

    def resume(self, peer: Peer, wanted: ResumeRequest) -> Done:
        """Let a suspended, failed or stopped run go on from its last finished round."""
        run = self._runs.find(wanted.run_id)
        status = self._schedule.status(run)
        if reason := why_not_resumed(run.taken.plan, status, time.time()):
            raise RefusedError(f"the run {run.run_id} {reason}")
        run.let_go_on(peer.name)
        self._wake.set()
        log.info("%s resumes run %s", peer.name, run.run_id)
        return Done(message=f"the run {run.run_id} goes on from its last finished round")

    def logs(self, peer: Peer, wanted: LogsOfSite) -> LogsGiven:
        """Ask a site what it lets out of its record of a run."""
        wish = wanted.signed.request
        run = self._runs.find(wish.run_id)
        if verify(wish, wanted.signed.signature) != self._key_of(peer):
            raise IdentityError(f"the wish is not signed by the key of '{peer.name}', who sent it")
        if wish.coordinator != self._config.name or wish.site not in run.sites:
            raise UsageError(f"'{wish.site}' is no site of {run.run_id} at {self._config.name}")
        if not time.time() < wish.not_after <= time.time() + LONGEST_WISH_S:
            raise UsageError(f"the wish must be good for at most {LONGEST_WISH_S:.0f} s from now")
        question = Query(site=wish.site, signed=None, receipt=None, logs=wanted.signed)
        asked = SignedQuery(query=question, signature=self._signer.sign(question))
        answer = self.gateway.ask(wish.site, asked, LOGS_TIMEOUT_S)
        return LogsGiven(logs=None if answer is None else answer.logs)

    def find_model(self, peer: Peer, wanted: ModelRequest) -> ModelFound:
        """Say which models of a run are kept; offer the wanted one to the caller for download."""
        run = self._runs.find(wanted.run_id)
        kept = tuple(kept_models(run))
        found = find_model(run, wanted.round)
        if found is None:
            return ModelFound(model=None, round=None, kept=kept)
        number, ref = found
        self.gateway.lend(peer, blob_path(run.folder / MODELS, ref.digest), ref)
        return ModelFound(model=ref, round=number, kept=kept)

    # ---- members ---------------------------------------------------------------------------

    def invite(self, peer: Peer, wanted: InviteRequest) -> Invitation:
        """Invite somebody; the address in the invitation is the one that is listened on."""
        return self._registrar.invite(wanted, by=peer.name, gateway=self.address)

    def list_members(self, peer: Peer, wanted: MembersRequest) -> Members:
        """Return everybody who was invited or enrolled."""
        del peer, wanted
        members = self._registry.members(connected=self.gateway.connected())
        skewed = self.gateway.skewed()
        shown = tuple(turned_away(member, skewed) for member in members)
        return Members(consortium=self._config.name, members=shown)

    def revoke(self, peer: Peer, wanted: RevokeRequest) -> Done:
        """Cut a member off at once: its open calls, and its part in every run."""
        role = _role(wanted.role)
        if (role, wanted.name) == (peer.role, peer.name):
            raise RefusedError("nobody revokes themselves: ask another operator")
        if len(wanted.reason) > MOST_REASON:
            raise UsageError(f"reason: expected at most {MOST_REASON} characters")
        if role is Role.COORDINATOR:
            raise RefusedError("the coordinator cannot be revoked; stop it, and rotate the issuer")
        gone = Peer(role=role, name=wanted.name)
        if wanted.signed is not None:
            self._check_signed(peer, wanted, wanted.signed)
        elif role is Role.OPERATOR and self._key_of(gone) is not None:
            raise UsageError(f"the revocation of '{wanted.name}' is not signed, and sites pin keys")
        self._registry.revoke(gone, by=peer.name, reason=wanted.reason, signed=wanted.signed)
        self.gateway.cut(gone)
        if role is Role.SITE:
            self._schedule.site_left(wanted.name, "revoked")
        log.warning("%s revoked %s '%s'", peer.name, role, wanted.name)
        told = f"{role} '{wanted.name}' is cut off"
        if wanted.signed is not None:
            count = self.gateway.tell_revocation(to_json(wanted.signed))
            sites = "1 connected site is" if count == 1 else f"{count} connected sites are"
            told += f"; {sites} told, the others when they connect"
        return Done(message=told)

    # ---- within ----------------------------------------------------------------------------

    def _check_signed(self, peer: Peer, wanted: RevokeRequest, signed: SignedRevocation) -> None:
        """Check that what sites are to be told says what is wanted, by the key of who wants it."""
        told = signed.revocation
        if verify(told, signed.signature) != self._key_of(peer):
            raise IdentityError(f"the revocation is not signed by the key of '{peer.name}'")
        expected = (Role.OPERATOR, self._config.name, wanted.name, wanted.reason)
        if (_role(wanted.role), told.coordinator, told.operator, told.reason) != expected:
            raise UsageError("what is signed is not what is asked for")
        if abs(told.at - time.time()) > LONGEST_WISH_S:
            raise UsageError("the revocation was signed at another time: set your clock")

    def _members(self, role: Role) -> dict[str, Member]:
        return {m.name: m for m in self._registry.members() if m.role == role}

    def _key_of(self, peer: Peer) -> str | None:
        member = self._members(peer.role).get(peer.name)
        return None if member is None else member.fingerprint

    def _upload(self, peer: Peer, digest: str) -> Path | None:
        return self.gateway.store.find_upload(peer, digest)

    def _take(self, peer: Peer, digest: str, into: Path) -> bool:
        return self.gateway.store.take_upload(peer, digest, into)

    def _unfit(self, plan: RunPlan) -> tuple[Finding, ...]:
        skewed = self.gateway.skewed()
        members = {n: turned_away(m, skewed) for n, m in self._members(Role.SITE).items()}
        anchors = Anchors(self._config.home / ANCHORS)
        return unfit_sites(plan.signed, members, anchors, self.gateway, self._signer)


def _role(word: str) -> Role:
    try:
        return Role(word)
    except ValueError as error:
        raise UsageError(f"'{word}' is no role: {', '.join(Role)}") from error
