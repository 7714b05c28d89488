"""One real site against a coordinator that a test plays.

Keys, policy file, ledger, audit chain, egress guard and pipeline are the real ones, on disk. The
executor alone is scripted here, so that a test decides what a worker gave; tests of the real
worker are elsewhere.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fedfactory.contracts.codec import digest_of, to_json
from fedfactory.contracts.model import BlobRef, ModelSpec
from fedfactory.contracts.orders import Order, Scalar, TrainParameters
from fedfactory.contracts.plans import Anchor, OrderEnvelope, RunTerms, SignedOrder, SignedTerms
from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.contracts.updates import Reply
from fedfactory.identity.signing import Signer, fingerprint, new_signing_key
from fedfactory.tasks.rehearsal import Passes
from fedfactory.wire.arrays import spec_of, write_arrays
from site_agents.assembly import open_books
from site_agents.books import Books
from site_agents.config import load_agent_config
from site_agents.jobs.job import RESULT, UPDATE, Job, JobResult, JobTrial, write_file
from site_agents.jobs.settings import SourceFacts
from site_agents.pipeline import Pending, Pipeline, Transfer
from site_agents.policy import AcknowledgedRisk, DataRule, Range, WithoutDp, policy_text
from site_agents.received import read_message
from site_agents.setup import make_home
from tests.policy_orders import pin

SITE, HUB, LINEAGE = "cesga", "hub", "patients"
PUBLIC_SIZE = 500
MODEL = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)}
TRAINING = TrainParameters(
    local_epochs=2, batch_size=50, lr=0.1, momentum=0.0, proximal_mu=0.0, max_steps=None
)
with TemporaryDirectory() as _folder:
    INITIAL = write_arrays(Path(_folder) / "initial", MODEL)
FACTS = SourceFacts(train=400, evaluate=100, fingerprint="v1")
PRIVACY = PrivacyPlan(
    target_epsilon=3.0, noise_multiplier=None, delta=1e-5, clip_norm_l2=1.0,
    grad_sample_mode="hooks", evaluation_noise_multiplier=8.0, evaluation_loss_clip=5.0,
)  # fmt: skip
OPEN = WithoutDp(
    acknowledged_risk=AcknowledgedRisk(by="A. Admin", on="2026-11-01", reason="public data"),
    min_examples=10,
    min_local_steps=2,
)


class Coordinator:
    """Asks whatever a test wants, and signs it with the keys that the site pins."""

    def __init__(self) -> None:
        self.key = Signer(new_signing_key())
        self.operator = Signer(new_signing_key())
        self.number = 0
        self._not_after = time.time() + 3600

    def terms(self, **changes: Any) -> RunTerms:
        values: dict[str, Any] = {
            "coordinator": HUB, "run_id": "run-1", "sites": (SITE, "lumi"), "task": "digits",
            "task_parameters": {"model": "mlp"}, "initial": INITIAL, "strategy": "fedavg",
            "strategy_options": {}, "mode": "sync", "training": TRAINING, "rounds": 5,
            "evaluate": True, "privacy": PRIVACY, "max_model_bytes": 10_000,
            "max_update_norm_l2": 10.0, "nonce": "n-1", "not_after": self._not_after,
        }  # fmt: skip
        return RunTerms(**{**values, **changes})

    def order(self, base: BlobRef, terms: RunTerms, **changes: Any) -> Order:
        kind = changes.get("kind", "train")
        values: dict[str, Any] = {
            "coordinator": terms.coordinator, "run_id": terms.run_id, "round": 1, "kind": kind,
            "site": SITE, "task": terms.task, "task_parameters": terms.task_parameters,
            "training": terms.training if kind == "train" else None, "base": base, "seed": 1,
            "privacy": terms.privacy, "terms_digest": digest_of(terms),
        }  # fmt: skip
        return Order(**{**values, **changes})

    def delivery(
        self,
        order: Order,
        terms: RunTerms,
        *,
        receipt: Anchor | None = None,
        expires_at: float | None = None,
    ) -> str:
        self.number += 1
        sending = OrderEnvelope(
            order=order,
            signed=SignedTerms(terms=terms, signature=self.operator.sign(terms)),
            number=self.number,
            expires_at=time.time() + 60 if expires_at is None else expires_at,
            receipt=receipt,
        )
        return to_json(SignedOrder(envelope=sending, signature=self.key.sign(sending)))


@dataclass
class Scripted:
    """An executor whose worker does as told; it writes the files that a real one writes."""

    log: Path
    tensors: Mapping[str, np.ndarray] = field(
        default_factory=lambda: {n: a + np.float32(0.5) for n, a in MODEL.items()}
    )
    metrics: Mapping[str, float] = field(default_factory=lambda: {"loss": 0.5, "accuracy": 0.75})
    failure: str | None = None
    facts: SourceFacts = FACTS
    fault: Callable[[Job], None] = lambda job: None
    jobs: list[Job] = field(default_factory=list)
    described: int = 0
    forms_checked: int = 0
    misfit: Exception | None = None
    rehearsed: list[JobTrial] = field(default_factory=list)
    unfit: Exception | None = None

    def describe(
        self, source: str, task: str, task_parameters: Mapping[str, Scalar]
    ) -> SourceFacts:
        self.described += 1
        return self.facts

    def check_form(self, source: str, task: str, task_parameters: Mapping[str, Scalar]) -> None:
        self.forms_checked += 1
        if self.misfit is not None:
            raise self.misfit

    def rehearse(self, trial: JobTrial) -> Passes:
        self.rehearsed.append(trial)
        if self.unfit is not None:
            raise self.unfit
        return Passes(rows=trial.rehearsal.rows, threads=1)

    def run(self, job: Job, folder: Path, timeout_s: float) -> JobResult:
        self.jobs.append(job)
        with self.log.open("a") as log:  # data is touched from here on
            log.write(f"{job.kind} {job.round}\n")
        self.fault(job)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        ref = write_arrays(folder / UPDATE, self._fresh()) if job.kind == "train" else None
        result = JobResult(
            failure=self.failure,
            examples=400,
            metrics=self.metrics,
            seconds=1.5,
            declared=self.declared if job.kind == "train" else None,
            update=ref,
        )
        write_file(folder / RESULT, result)
        return result

    @property
    def declared(self) -> ModelSpec:
        return spec_of(MODEL)

    def _fresh(self) -> dict[str, np.ndarray]:
        """No two executions give the same update: that is how tests tell a second one."""
        count = len(self.log.read_text().splitlines())
        return {n: (a + np.float32(count / 1000)).astype(a.dtype) for n, a in self.tensors.items()}

    def start(self) -> None: ...
    def drain(self) -> None: ...
    def stop_work(self) -> None: ...
    def close(self) -> None: ...


class Site:
    """The site's home in a folder, and its pipeline; `restart` opens all of it anew."""

    def __init__(self, folder: Path, coordinator: Coordinator, **policy: Any) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.coordinator = coordinator
        base = folder / "base.safetensors"
        self.base = write_arrays(base, MODEL)
        make_home(
            self.home,
            site=SITE,
            gateway_address="localhost:1",
            data={"cohort": {"kind": "npz", "path": str(folder / "cohort.npz")}},
            policy_text=self.policy(**policy),
        )
        self.executor = Scripted(log=folder / "executions")
        self.received = folder / "received"
        self.received.mkdir()
        self.open()

    def policy(self, **changes: Any) -> str:
        values: dict[str, Any] = {
            "coordinators": {HUB: fingerprint(self.coordinator.key.public_key)},
            "operators": {"olga": pin(fingerprint(self.coordinator.operator.public_key))},
            "data": {"cohort": DataRule(lineage=LINEAGE, public_size=PUBLIC_SIZE, unit="row")},
            "tasks": {"digits": "cohort"},
            "training": {"local_epochs": Range(1, 5), "lr": Range(1e-6, 1.0)},
            "rounds": 10,
            "max_model_bytes": 100_000,
        }
        return policy_text(**{**values, **changes})

    def write_policy(self, **changes: Any) -> None:
        (self.home / "policy.yaml").write_text(self.policy(**changes))

    def open(self) -> None:
        config = load_agent_config(self.home, [])
        self.books: Books = open_books(config)
        self.pipeline = Pipeline(
            site=SITE,
            home=self.home,
            books=self.books,
            executor=self.executor,
            transfer=Transfer(
                fetch=lambda ref: nullcontext(self.folder / "base.safetensors"), send=self._send
            ),
            timeout_s=60.0,
            sources=frozenset(config.data),
        )

    def close(self) -> None:
        self.books.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def _send(self, path: Path, ref: BlobRef) -> None:
        (self.received / ref.digest.removeprefix("sha256:")).write_bytes(path.read_bytes())

    # ---- asking ------------------------------------------------------------------------------

    def ask(self, terms: RunTerms | None = None, **changes: Any) -> Reply:
        """Ask by a delivery that holds together, and return the answer."""
        reply = self.answer(self.delivery(terms, **changes))
        assert isinstance(reply, Reply)
        return reply

    def delivery(self, terms: RunTerms | None = None, **changes: Any) -> str:
        terms = terms or self.coordinator.terms()
        receipt = changes.pop("receipt", None)
        expires_at = changes.pop("expires_at", None)
        base = changes.pop("base", self.base)
        order = self.coordinator.order(base, terms, **changes)
        return self.coordinator.delivery(order, terms, receipt=receipt, expires_at=expires_at)

    def answer(self, text: str) -> Reply | Pending | None:
        return self.pipeline.answer(read_message(text))

    # ---- looking -----------------------------------------------------------------------------

    def code(self, terms: RunTerms | None = None, **changes: Any) -> str | None:
        refusal = self.ask(terms, **changes).refusal
        return refusal.code if refusal else None

    def steps_spent(self) -> int:
        return sum(self.books._ledger.budget.spendings[LINEAGE].values())

    def executions(self) -> int:
        log = self.executor.log
        return len(log.read_text().splitlines()) if log.exists() else 0


def changed(terms: RunTerms, **changes: Any) -> RunTerms:
    return dataclasses.replace(terms, **changes)
