"""Whether a submission is taken, and what is made of it: everything is checked before anything is.

Checks run from the cheapest to the dearest: agreement and limits, the operator's signature, what
has been seen before, the strategy, the model's file, and last a question to each site. A run is
made whole in its folder, by one rename, or not at all.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import (
    FedfactoryError,
    IdentityError,
    RefusedError,
    UsageError,
)
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.coordinator.aggregating.strategy_loading import check_strategy
from fedfactory.coordinator.coordinator_config import CoordinatorConfig
from fedfactory.coordinator.desk.agreement import Limits, can_begin, check_agreement
from fedfactory.coordinator.desk.watching import kept_models
from fedfactory.coordinator.gateway.blobs import blob_path
from fedfactory.coordinator.membership.consortium import IDENTITY
from fedfactory.coordinator.run_facts import Taken
from fedfactory.coordinator.run_settings import CENTRAL, RunSettings
from fedfactory.coordinator.running.checkpoints import MODELS
from fedfactory.coordinator.runs import SETTINGS, Run, Runs
from fedfactory.identity.enrolment import TLS_KEY
from fedfactory.identity.roles import Peer
from fedfactory.identity.signing import verify
from fedfactory.wire.arrays import ArrayFile
from fedfactory.wire.operations import Finding, Submitted

ANCHORS: Final = "anchors"
_NO_FINDING: Final[tuple[Finding, ...]] = ()


class Submitting:
    """Takes submissions. Any thread may call it.

    `key_of(peer)` returns the fingerprint of a member's key, `upload(peer, digest)` the file that
    it uploaded (None: none), `take(peer, digest, into)` moves that file (False: none),
    `unfit(plan)` returns what speaks against its sites now, `waiting()` how many runs wait
    for a place.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        runs: Runs,
        *,
        key_of: Callable[[Peer], str | None],
        upload: Callable[[Peer, str], Path | None],
        take: Callable[[Peer, str, Path], bool],
        unfit: Callable[[RunPlan], tuple[Finding, ...]],
        waiting: Callable[[], int],
    ) -> None:
        self._config = config
        self._runs = runs
        self._key_of = key_of
        self._upload = upload
        self._take_upload = take
        self._unfit = unfit
        self._waiting = waiting
        self._lock = threading.Lock()
        self._under_way: set[str] = set()

    def submit(self, peer: Peer, plan: RunPlan) -> Submitted:
        """Check a plan; make a run of it if it is sound.

        Raises:
            IdentityError: it is not signed by the caller's own key.
        """
        try:
            with self._once(plan):
                self._check(peer, plan)
                findings = self._unfit(plan)
                if reason := can_begin(plan, findings):
                    return Submitted(run_id=None, reason=reason, findings=findings)
                run = self._make(peer, plan)
        except IdentityError:
            raise
        except FedfactoryError as error:
            return Submitted(run_id=None, reason=error.public_message, findings=_NO_FINDING)
        return Submitted(run_id=run.run_id, reason="", findings=findings)

    # ---- checks ----------------------------------------------------------------------------

    @contextmanager
    def _once(self, plan: RunPlan) -> Iterator[None]:
        """Refuse a plan that was given before, also one that is being looked at just now."""
        terms = plan.terms
        with self._lock:
            seen = {(run.run_id, run.facts.nonce) for run in self._runs.all()}
            ids, nonces = {i for i, _ in seen}, {n for _, n in seen}
            if terms.run_id in ids | self._under_way or self._runs.home_of(terms.run_id).exists():
                raise RefusedError(f"the run {terms.run_id} was submitted before")
            if terms.nonce in nonces | self._under_way:
                raise RefusedError("a plan with this nonce was submitted before: sign a new one")
            self._under_way |= {terms.run_id, terms.nonce}
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= {terms.run_id, terms.nonce}

    def _check(self, peer: Peer, plan: RunPlan) -> None:
        config = self._config
        limits = Limits(
            max_rounds=config.max_rounds,
            max_sites=config.max_sites,
            max_model_bytes=config.max_model_bytes,
        )
        check_agreement(plan, coordinator=config.name, limits=limits, now=time.time())
        signed = plan.signed
        if verify(signed.terms, signed.signature) != self._key_of(peer):
            raise IdentityError(f"the plan is not signed by the key of '{peer.name}', who sent it")
        if (waiting := self._waiting()) >= config.queue:
            raise RefusedError(f"{waiting} runs wait already, and the queue holds {config.queue}")
        check_strategy(plan.terms, any_class=config.strategy_classes == "any")
        self._check_model(self._find(peer, signed.terms.initial, "the initial model"))
        if plan.central is not None:
            self._find(peer, plan.central, "the public data set")

    def _check_model(self, path: Path) -> None:
        try:
            with ArrayFile(path) as file:
                spec = file.spec
        except FedfactoryError as error:
            raise UsageError(f"the initial model: {error.public_message}") from error
        if not spec.tensors:
            raise UsageError("the initial model holds no tensors")

    def _find(self, peer: Peer, ref: BlobRef, what: str) -> Path:
        """Return the file of a blob: one that the caller uploaded, or a model of an earlier run."""
        path = self._upload(peer, ref.digest) or self._model(ref.digest)
        if path is None:
            raise UsageError(f"{what} {ref.digest} has not been uploaded by '{peer.name}'")
        if (length := path.stat().st_size) != ref.bytes:
            raise UsageError(f"{what} is {length} bytes long, and the plan says {ref.bytes}")
        return path

    def _model(self, digest: str) -> Path | None:
        """Return the file of an earlier run's model; None if there is none that is kept.

        A strategy's state lies beside the models, and may hold single sites' updates: who names it
        as a model is not given it.
        """
        for run in reversed(self._runs.all()):
            path = blob_path(run.folder / MODELS, digest)
            if path.exists() and digest in _models(run):
                return path
        return None

    # ---- making ----------------------------------------------------------------------------

    def _make(self, peer: Peer, plan: RunPlan) -> Run:
        run_id = plan.terms.run_id
        staged = self._runs.staging(run_id)
        try:
            initial = plan.terms.initial
            self._take(peer, initial, blob_path(staged / MODELS, initial.digest))
            if plan.central is not None:
                self._take(peer, plan.central, staged / CENTRAL)
            self._settings(plan).write(staged / SETTINGS)
            with self._lock:
                taken = Taken(
                    number=self._runs.next_number(),
                    at=time.time(),
                    operator=peer.name,
                    plan=plan,
                )
                return self._runs.add(staged, taken)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise

    def _take(self, peer: Peer, ref: BlobRef, target: Path) -> None:
        """Give a run a file of its own: the caller's upload, moved; or an earlier model, linked."""
        if not self._take_upload(peer, ref.digest, target):
            model = self._model(ref.digest)
            if model is None:
                raise UsageError(f"{ref.digest} was given up meanwhile: send it again")
            os.link(model, target)
        target.chmod(0o600)
        handle = os.open(target, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _settings(self, plan: RunPlan) -> RunSettings:
        home, folder = self._config.home, self._runs.home_of(plan.terms.run_id)
        return RunSettings(
            plan=plan,
            signing_key=str(home / IDENTITY / TLS_KEY),
            anchors=str(home / ANCHORS),
            any_strategy_class=self._config.strategy_classes == "any",
            run_folder=str(folder),
            start_timeout_s=self._config.start_timeout_s,
        )


def _models(run: Run) -> set[str]:
    """Return the digests of a run's models: the one it begins with, and those it made."""
    initial = run.facts.initial
    return {initial.digest, *(ref.digest for ref in kept_models(run).values())}
