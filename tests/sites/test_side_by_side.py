"""Several runs on one home at a time: totals are right, and nothing waits for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fedfactory.identity.signing import fingerprint
from site_agents.spool import KEEP_OF_RUN
from tests.patience import HANG_S
from tests.policy_orders import pin
from tests.sites.rig import HUB, LINEAGE, OPEN, PRIVACY, Coordinator, Site, changed

ROUNDS = 8
STEPS = 16
OTHER = "hub-2"


def test_two_coordinators_at_a_time(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    """Each asks to train and to evaluate at once, twice at a time, in threads of their own."""
    other = Coordinator()
    site = make_site(
        coordinators={
            HUB: fingerprint(coordinator.key.public_key),
            OTHER: fingerprint(other.key.public_key),
        },
        operators={
            "olga": pin(fingerprint(coordinator.operator.public_key)),
            "oleg": pin(fingerprint(other.operator.public_key)),
        },
        epsilon_per_run=100.0,
        epsilon_per_lineage=100.0,
    )
    chance = random.Random(1)
    site.executor.fault = lambda job: time.sleep(chance.uniform(0.0, 0.02))
    privacy = changed(PRIVACY, target_epsilon=None, noise_multiplier=5.0)
    asked: list[str] = []
    for number in range(1, ROUNDS + 1):
        for who, name in ((coordinator, HUB), (other, OTHER)):
            terms = who.terms(coordinator=name, rounds=ROUNDS, privacy=privacy)
            for kind in ("train", "evaluate"):
                order = who.order(site.base, terms, round=number, kind=kind)
                asked += [who.delivery(order, terms), who.delivery(order, terms)]
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(site.answer, asked, timeout=HANG_S))

    assert [reply.refusal for reply in replies] == [None] * len(asked)
    for first, again in zip(replies[::2], replies[1::2], strict=True):
        assert first.update == again.update, "one work was answered by two updates"
    works = 2 * 2 * ROUNDS
    assert site.executions() == works
    assert site.steps_spent() == 2 * ROUNDS * (STEPS + 1)
    trained = [r.update.payload.blob.digest for r in replies if r.update.payload]
    assert len(trained) == 4 * ROUNDS
    assert {f"sha256:{path.name}" for path in site.received.iterdir()} == set(trained)

    budget = site.books._ledger.budget
    assert {run.coordinator for run in budget.runs} == {HUB, OTHER}
    assert len({reply.anchor.audit_length for reply in replies}) == len(asked)
    site.restart()
    assert site.books.check(max((r.anchor for r in replies), key=lambda a: a.audit_length)) is None
    assert site.books._ledger.budget.spendings[LINEAGE] == budget.spendings[LINEAGE]


def test_a_busy_run_does_not_cost_another_its_finished_update(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    site = make_site(without_dp=OPEN)
    quiet = coordinator.terms(privacy=None, run_id="quiet")
    busy = coordinator.terms(privacy=None, run_id="busy", rounds=10)
    first = site.ask(quiet)
    for number in range(1, 9):
        assert site.code(busy, round=number) is None
    site.restart()
    assert site.code(busy, round=9) is None
    assert site.ask(quiet).update == first.update
    folders = list((site.home / "spool" / "jobs").iterdir())
    assert len(folders) == 1 + KEEP_OF_RUN


def test_asked_again_by_another_flower_run_while_it_works(site: Site) -> None:
    """A coordinator that was restarted asks by a new message; both are answered, by one work."""
    working, go = threading.Event(), threading.Event()

    def fault(job: object) -> None:
        working.set()
        assert go.wait(HANG_S)

    site.executor.fault = fault
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(site.answer, site.delivery())
        assert working.wait(HANG_S)
        again = threads.submit(site.answer, site.delivery())
        time.sleep(0.2)
        assert not again.done()
        go.set()
        replies = [first.result(HANG_S), again.result(HANG_S)]
    assert replies[0].update == replies[1].update is not None
    assert site.executions() == 1
    assert site.steps_spent() == STEPS
