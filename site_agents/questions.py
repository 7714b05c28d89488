"""Questions of a coordinator outside the rounds: believed or not, answered at once, without work.

A question comes with the doorbell. Only its coordinator's key, pinned by the policy, makes it one;
what is asked about is signed by an operator besides. The answer is a code, or what the policy's
`logs` clause lets out; it is written into the audit chain before it leaves. More questions than a
person would ask are not answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from fedfactory.contracts.codec import digest_of, from_json
from fedfactory.contracts.errors import (
    FedfactoryError,
    IdentityError,
    ProtocolError,
    UsageError,
)
from fedfactory.contracts.plans import SignedTerms
from fedfactory.contracts.questions import (
    Answer,
    Preflight,
    SignedLogsRequest,
    SignedQuery,
    SiteLogs,
)
from fedfactory.contracts.versions import own_version
from fedfactory.identity.signing import verify
from fedfactory.privacy.entries import RunKey
from site_agents.audit.entries import answered
from site_agents.books import Books
from site_agents.books_view import BooksError
from site_agents.config import POLICY_FILE
from site_agents.executors.executor import Executor
from site_agents.fitness import BriefCount, judge_fitness
from site_agents.gate_case import Ground
from site_agents.policy import Policy, PolicyFileError, operator_fault
from site_agents.policy_file import load_policy
from site_agents.rate import BURST, Rate
from site_agents.refused import RefusedError
from site_agents.revocations import revoked_keys
from site_agents.site_logs import lines_of
from site_agents.unauthorised import CODES

log = logging.getLogger("site_agents.questions")

MAX_QUESTION_CHARS: Final = 256 * 1024
# Nobody's wish to read logs is good for longer: as long is remembered which ones were granted.
LONGEST_WISH_S: Final = 3600.0


class Questions:
    """Answers for one site. Safe to use from several threads; one question at a time.

    `sources` are the names under `data` in agent.yaml.
    """

    def __init__(
        self,
        *,
        site: str,
        home: Path,
        books: Books,
        executor: Executor,
        sources: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._site = site
        self._home = home
        self._books = books
        self._ground = Ground(
            site=site, home=home, sources=sources, books=books, worker=BriefCount(executor)
        )
        self._rate = Rate(clock)
        self._granted: dict[str, float] = {}  # nonce to the end of its wish, Unix seconds
        self._lock = threading.Lock()

    def answer(self, text: str) -> Answer | None:
        """Return the answer; None to what is no question, or to one too many."""
        with self._lock:
            note = self._books.unauthorised.note
            if not self._rate.take():
                note("question", f"not read: more than {BURST} at once")
                return None
            if len(text) > MAX_QUESTION_CHARS:
                note("message", f"{len(text)} characters are no question")
                return None
            try:
                signed = from_json(SignedQuery, text)
                return self._answer(signed)
            except (ProtocolError, UsageError) as error:
                note("message", f"no question: {error}")
                return None

    def _answer(self, signed: SignedQuery) -> Answer:
        question = signed.query
        if question.signed is not None:
            code = self._fitness(signed, question.signed)
            terms, said = question.signed.terms, code or "fit"
            if code not in CODES:
                self._record(signed, terms.coordinator, terms.run_id, "plan", said)
            return Answer(preflight=Preflight(code=code, version=own_version()), logs=None)
        assert question.logs is not None
        logs, wanted = self._logs(signed, question.logs), question.logs.request
        said = f"{logs.status}: {len(logs.lines)} lines"
        if logs.status != "not_authorised":
            self._record(signed, wanted.coordinator, wanted.run_id, "logs", said)
        return Answer(preflight=None, logs=logs)

    def _fitness(self, signed: SignedQuery, plan: SignedTerms) -> str:
        try:
            judge_fitness(self._ground, signed, plan)
        except RefusedError as error:
            if error.code in CODES:
                self._books.unauthorised.note("question", str(error))
            else:
                log.info("asked whether this site would take part: %s", error)
            return error.code
        return ""

    def _logs(self, signed: SignedQuery, wish: SignedLogsRequest) -> SiteLogs:
        wanted = wish.request
        try:
            policy = load_policy(self._home / POLICY_FILE)
            self._believe(signed, wish, policy)
            if policy.logs == "none":
                return SiteLogs(status="withheld", lines=())
            run = RunKey(coordinator=wanted.coordinator, run_id=wanted.run_id)
            lines = lines_of(self._home, self._books, run)
        except (RefusedError, IdentityError, PolicyFileError) as error:
            self._books.unauthorised.note("question", f"logs: {error}")
            return SiteLogs(status="not_authorised", lines=())
        except FedfactoryError as error:
            log.warning("logs cannot be given: %s", error)
            return SiteLogs(status="withheld", lines=())
        return SiteLogs(status="let_out", lines=lines)

    def _believe(self, signed: SignedQuery, wish: SignedLogsRequest, policy: Policy) -> None:
        """Check that a wish is its operator's and coordinator's, for this site, now and once."""
        wanted, now = wish.request, time.time()
        coordinator = verify(signed.query, signed.signature)
        operator = verify(wanted, wish.signature)
        revoked = revoked_keys(self._home)
        fault = operator_fault(policy.operators, operator, now, revoked)
        self._granted = {nonce: end for nonce, end in self._granted.items() if end >= now}
        against = {
            "no such coordinator key is pinned": policy.coordinators.get(wanted.coordinator)
            != coordinator,
            fault or "": fault is not None,
            "it is another site's": {wanted.site, signed.query.site} != {self._site},
            "it is not for now": not now <= wanted.not_after <= now + LONGEST_WISH_S,
            "it was granted before": wanted.nonce in self._granted,
        }
        if found := [finding for finding, holds in against.items() if holds]:
            raise RefusedError("not_authorised", found[0])
        self._granted[wanted.nonce] = wanted.not_after

    def _record(
        self, signed: SignedQuery, coordinator: str, run_id: str, about: str, said: str
    ) -> None:
        """Write down that an answer leaves, if the books still take it: they may be the answer."""
        entry = answered(
            digest_of(signed), about=about, said=said, coordinator=coordinator, run_id=run_id
        )
        try:
            self._books.record(entry)
        except BooksError as error:
            log.error("the answer could not be recorded: %s", error)  # noqa: TRY400
