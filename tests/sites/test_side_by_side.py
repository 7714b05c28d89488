"""Several runs on one home at a time: totals are right, and nothing waits for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rig import HUB, LINEAGE, PRIVACY, Coordinator, Site, changed

from fedfactory.identity.signing import fingerprint

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
            "olga": fingerprint(coordinator.operator.public_key),
            "oleg": fingerprint(other.operator.public_key),
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
        replies = list(threads.map(site.answer, asked, timeout=60))
    assert threading.active_count() == 1

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
