"""What the gates are asked about: one order, or the first order that a plan would bring.

Facts are read from the site's own files when a gate first needs them, once for each case. A fact
that an earlier gate refused, or that cannot be known here, raises UnjudgedError: `policy explain`
shows that, and an order never comes so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.errors import FedfactoryError, IdentityError, IntegrityError
from fedfactory.contracts.orders import Order, Scalar, WorkKey
from fedfactory.contracts.plans import OrderEnvelope, Signature, SignedOrder
from fedfactory.contracts.updates import Update
from fedfactory.identity.signing import verify
from fedfactory.tasks.table import check_task
from fedfactory.tasks.task import Task
from site_agents.approvals import Approvals, Decision, work_id
from site_agents.books_view import BooksError, BooksView
from site_agents.config import POLICY_FILE
from site_agents.jobs.job import JobTrial
from site_agents.jobs.settings import SourceFacts
from site_agents.policy import DataRule, Facts, Policy, PolicyFileError
from site_agents.policy_file import load_policy, local_minute
from site_agents.revocations import revoked_keys


class UnjudgedError(Exception):
    """A gate cannot be judged; the message says why, for a person of the site."""


class AsksWorker(Protocol):
    """What is asked of a worker before work begins. Each raises what an Executor's methods do."""

    def describe(
        self, source: str, task: str, task_parameters: Mapping[str, Scalar]
    ) -> SourceFacts | None:
        """Say what a source holds for a task; None if that cannot be known now."""

    def check_form(self, source: str, task: str, task_parameters: Mapping[str, Scalar]) -> None:
        """Check that a source has the form that a task needs, as far as that is known now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The site's side of every case. `sources` are the names under `data` in agent.yaml.

    `books` is the error where they cannot even be opened; `worker` is None where no worker is
    asked.
    """

    site: str
    home: Path
    sources: Collection[str]
    books: BooksView | BooksError
    worker: AsksWorker | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """How the base model is fetched, and private work on it is tried without data.

    Both raise what their owners raise: the transfer's and the executor's errors.
    """

    fetch: Callable[[], Path]
    rehearse: Callable[[JobTrial], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """An update that is about to leave. `cleared`: the egress guard read its file just now."""

    update: Update
    file: Path
    cleared: bool


class Case:
    """One thing that is asked of this site. Not for several threads.

    `signed` is what the coordinator signed, a sending or a question. `is_question`: the order is
    the first that the plan would bring, and none was ever finished or begun.
    """

    def __init__(
        self,
        ground: Ground,
        sending: OrderEnvelope,
        key: WorkKey,
        signed: object,
        signature: Signature,
        *,
        is_question: bool = False,
    ) -> None:
        self.ground = ground
        self.sending = sending
        self.key = key
        self.base_model: BaseModel | None = None
        self.finished: Finished | None = None
        self.judged_at: float | None = None  # Unix seconds; None: when a gate first asks
        self._signed = signed
        self._signature = signature
        self._is_question = is_question

    @classmethod
    def of_delivery(cls, ground: Ground, delivery: SignedOrder, key: WorkKey) -> Case:
        """Return the case of an order that came, and is for the work of this key."""
        return cls(ground, delivery.envelope, key, delivery.envelope, delivery.signature)

    @property
    def order(self) -> Order:
        """What is to be done."""
        return self.sending.order

    @property
    def private(self) -> bool:
        """Whether it is done under differential privacy."""
        return self.order.privacy is not None

    # ---- who asks ------------------------------------------------------------------------------

    @cached_property
    def coordinator_signature(self) -> str | IdentityError:
        """The fingerprint of the key that signed, or why no signature counts."""
        return _signer(self._signed, self._signature)

    @cached_property
    def operator_signature(self) -> str | IdentityError:
        """The fingerprint of the key that signed the plan, or why no signature counts."""
        return _signer(self.sending.signed.terms, self.sending.signed.signature)

    @property
    def coordinator_key(self) -> str:
        """The fingerprint of the key that signed; "" if none did."""
        return _key(self.coordinator_signature)

    @property
    def operator_key(self) -> str:
        """The fingerprint of the key that signed the plan; "" if none did."""
        return _key(self.operator_signature)

    @cached_property
    def revoked(self) -> frozenset[str] | IntegrityError:
        """The fingerprints of the revoked operators' keys, or why that is not known."""
        return self.revoked_now()

    def revoked_now(self) -> frozenset[str] | IntegrityError:
        """Return the same, read anew."""
        try:
            return revoked_keys(self.ground.home)
        except IntegrityError as error:
            return error

    @property
    def _known_revoked(self) -> frozenset[str]:
        return frozenset() if isinstance(self.revoked, IntegrityError) else self.revoked

    # ---- the policy ----------------------------------------------------------------------------

    @cached_property
    def policy_or_fault(self) -> Policy | PolicyFileError:
        """The policy as its file says it now, or why it is not valid."""
        try:
            return load_policy(self.ground.home / POLICY_FILE)
        except PolicyFileError as error:
            return error

    @property
    def policy(self) -> Policy:
        """The site's policy."""
        if isinstance(self.policy_or_fault, PolicyFileError):
            raise UnjudgedError("there is no valid policy file")
        return self.policy_or_fault

    @property
    def source(self) -> str | None:
        """The name of the data set that the policy gives the task, None if it allows none."""
        return self.policy.source_for(self.order.task)

    @property
    def rule(self) -> DataRule | None:
        """What the policy says of that data set."""
        return None if self.source is None else self.policy.data[self.source]

    @property
    def data(self) -> DataRule:
        """The same, of a task that is allowed."""
        if self.rule is None:
            raise UnjudgedError("the policy does not allow the task")
        return self.rule

    @cached_property
    def facts(self) -> Facts:
        """What the policy's clauses judge by, as of the moment when this is first read."""
        now = time.time() if self.judged_at is None else self.judged_at
        books = self.ground.books
        known = isinstance(books, BooksView)
        return Facts(
            now=now,
            local_minute=local_minute(self.policy, now),
            coordinator_key=self.coordinator_key,
            operator_key=self.operator_key,
            revoked=self._known_revoked,
            site=self.ground.site,
            train_examples=None,
            evaluate_examples=None,
            gpu_hours_of_run=self.books.hours(self.key) if known else 0.0,
            finished=known and not self._is_question and self.books.is_finished(self.key),
        )

    def later(self) -> None:
        """Take time and revocations anew: minutes may have passed since the facts were read."""
        self.revoked = self.revoked_now()
        self.facts = replace(self.facts, now=time.time(), revoked=self._known_revoked)

    # ---- records, task, data -------------------------------------------------------------------

    @property
    def books(self) -> BooksView:
        """The site's books."""
        if isinstance(self.ground.books, BooksError):
            raise UnjudgedError("ledger and audit chain cannot be read")
        return self.ground.books

    @cached_property
    def update(self) -> Update | None:
        """The finished update of this very work, None if it was not done before.

        Raises:
            WorkConflictError: another order for the same run, round and kind was begun.
            LedgerError: the entry that holds it was altered.
        """
        return self.books.finished(self.key)

    @cached_property
    def task_or_fault(self) -> tuple[Task, bool] | FedfactoryError:
        """The installed task of that name, and whether it reads data; or why there is none.

        Its own schema took the parameters. A broken plug-in is a fault, too.
        """
        order = self.order
        try:
            task = check_task(order.task, order.task_parameters)
            return task, task.data_schema(order.task_parameters) is not None
        except FedfactoryError as error:
            return error

    @property
    def task(self) -> Task:
        """The task."""
        return self._task_and_reading[0]

    @property
    def reads_data(self) -> bool:
        """Whether the work reads data of the site."""
        return self._task_and_reading[1]

    @property
    def _task_and_reading(self) -> tuple[Task, bool]:
        if isinstance(self.task_or_fault, FedfactoryError):
            raise UnjudgedError("the task does not take the parameters")
        return self.task_or_fault

    @property
    def worker(self) -> AsksWorker:
        """Who looks at the data source."""
        if self.ground.worker is None:
            raise UnjudgedError("a worker looks at the data when the order comes")
        return self.ground.worker

    @property
    def base(self) -> BaseModel:
        """How the base model comes here."""
        if self.base_model is None:
            raise UnjudgedError("the base model is fetched when the order comes")
        return self.base_model

    @cached_property
    def base_file(self) -> Path:
        """The fetched base model. Raises what its transfer raises."""
        return self.base.fetch()

    def counted(self, found: SourceFacts | None) -> None:
        """Keep what a worker counted."""
        if found is not None:
            self.facts = replace(
                self.facts, train_examples=found.train, evaluate_examples=found.evaluate
            )

    # ---- the result ----------------------------------------------------------------------------

    @property
    def result(self) -> Finished:
        """The update that is about to leave."""
        if self.finished is None:
            raise UnjudgedError("there is no result yet")
        return self.finished

    @cached_property
    def decision(self) -> Decision | None:
        """What a person decided on this very update, None while nobody has."""
        digest = digest_of(self.result.update)
        return Approvals(self.ground.home).decision(work_id(self.key), digest)


def _signer(value: object, signature: Signature) -> str | IdentityError:
    try:
        return verify(value, signature)
    except IdentityError as error:
        return error


def _key(found: str | IdentityError) -> str:
    return "" if isinstance(found, IdentityError) else found
