"""Who waits for what: orders for a worker, results for a person, replies for the connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import EnvironmentFailedError, ProtocolError
from fedfactory.contracts.plans import Anchor, SignedOrder
from fedfactory.contracts.updates import Payload, Refusal, Reply, Update
from site_agents import dispatch
from site_agents.approvals import Pending
from site_agents.dispatch import Dispatcher
from site_agents.gateway_client import Fetched
from site_agents.received import Received, ReceivedOrder
from site_agents.status import StatusBoard, read_status
from tests.patience import HANG_S, until
from tests.policy_orders import BASE, UNSIGNED, sending_of


def message_of(run_id: str) -> Fetched:
    """An order of a run whose id is the message's, too; "no order" is none."""
    text = to_json(SignedOrder(envelope=sending_of(run_id=run_id), signature=UNSIGNED))
    return Fetched(message_id=run_id, text="{" if run_id == "no-order" else text, more=False)


def reply_to(order: Received) -> Reply:
    assert isinstance(order, ReceivedOrder)
    return Reply(update=None, refusal=Refusal(work=order.key, code="paused"), anchor=None)


def update_of(order: Received) -> Reply:
    assert isinstance(order, ReceivedOrder)
    update = Update(
        work=order.key,
        payload=Payload(form="delta", blob=BASE),
        examples=1,
        metrics={},
        seconds=1.0,
        privacy=None,
    )
    return Reply(update=update, refusal=None, anchor=None)


def run_of(received: Received) -> str:
    return received.key.run_id if isinstance(received, ReceivedOrder) else "no-order"


class Line:
    """A connection that can be cut."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.digests: list[str] = []
        self.cut = False
        self.gone: set[str] = set()
        self.never: set[str] = set()
        self.runs: dict[str, str] = {}  # by message id, where it is another

    def send(self, message_id: str, text: str, digest: str) -> bool:
        if message_id in self.gone:
            return False
        if message_id in self.never:
            raise ProtocolError("the gateway does not take this call")
        if self.cut:
            raise EnvironmentFailedError("cut")
        reply = from_json(Reply, text)
        assert reply.work.run_id == self.runs.get(message_id, message_id)
        self.sent.append(message_id)
        self.digests.append(digest)
        return True


class Bench:
    """A dispatcher with a pipeline of the test's own."""

    def __init__(
        self, home: Path, answer: Callable[[Received], Reply | Pending | Anchor | None]
    ) -> None:
        self.home = home
        self.line = Line()
        self.changes = threading.Semaphore(0)
        self.dispatcher = Dispatcher(
            answer=answer,
            send=self.line.send,
            board=StatusBoard(home),
            changed=self.changes.release,
        )

    def submit(self, run_id: str) -> None:
        self.dispatcher.submit(message_of(run_id))

    def settled(self, orders: int = 1) -> None:
        for _ in range(orders):
            assert self.changes.acquire(timeout=HANG_S)


def test_a_slow_order_does_not_hold_up_a_quick_one(tmp_path: Path):
    slow = threading.Event()

    def answer(order: Received) -> Reply:
        if run_of(order) == "train":
            assert slow.wait(HANG_S)
        return reply_to(order)

    bench = Bench(tmp_path, answer)
    bench.submit("train")
    bench.submit("evaluate")
    bench.settled()
    assert bench.line.sent == ["evaluate"]
    assert bench.dispatcher.is_working
    assert not bench.dispatcher.is_idle
    slow.set()
    bench.settled()
    assert bench.line.sent == ["evaluate", "train"]
    assert bench.dispatcher.is_idle


def test_what_waits_for_a_person_is_taken_up_when_they_decided(tmp_path: Path):
    decided = False
    seen: list[Received] = []

    def answer(order: Received) -> Reply | Pending:
        seen.append(order)
        return reply_to(order) if decided else Pending(work_id="w")

    bench = Bench(tmp_path, answer)
    bench.submit("a")
    bench.settled()
    assert bench.line.sent == []
    assert bench.dispatcher.is_idle  # nothing keeps the agent from draining
    bench.dispatcher.ask_again()
    bench.settled()
    assert bench.line.sent == []
    decided = True
    bench.dispatcher.ask_again()
    bench.settled()
    assert bench.line.sent == ["a"]
    bench.dispatcher.ask_again()
    assert bench.dispatcher.is_idle
    assert all(order is seen[0] for order in seen), "an order is read once"


def test_an_order_that_comes_with_each_connection_takes_up_one_place(tmp_path: Path):
    """A run's order waits for a worker, another's for a person, while the line breaks and breaks."""
    begun, done, decided = threading.Event(), threading.Event(), threading.Event()
    answered: list[str] = []

    def answer(order: Received) -> Reply | Pending:
        if run_of(order) == "slow":
            begun.set()
            assert done.wait(HANG_S)
        elif not decided.is_set():
            return Pending(work_id="w")
        answered.append(run_of(order))
        return reply_to(order)

    bench = Bench(tmp_path, answer)
    for number in range(3 * dispatch.MOST_IN_HAND):
        for run in ("slow", "asks"):
            fetched = replace(message_of(run), message_id=f"{run}.{number}")
            bench.line.runs[fetched.message_id] = run
            bench.dispatcher.submit(fetched)
            if (run, number) == ("slow", 0):
                assert begun.wait(HANG_S)
            else:
                bench.settled()
    assert bench.dispatcher.has_room
    decided.set()
    bench.dispatcher.ask_again()
    done.set()
    until(lambda: bench.dispatcher.is_idle)
    last = 3 * dispatch.MOST_IN_HAND - 1
    assert sorted(bench.line.sent) == [f"asks.{last}", "slow.0", f"slow.{last}"]
    assert sorted(answered) == ["asks", "slow", "slow"]


def test_a_reply_names_the_upload_that_it_speaks_of(tmp_path: Path):
    bench = Bench(tmp_path, lambda o: update_of(o) if run_of(o) == "update" else reply_to(o))
    for run_id in ("update", "refusal"):
        bench.submit(run_id)
        bench.settled()
    assert bench.line.digests == [BASE.digest, ""]


def test_a_reply_waits_for_the_connection_and_is_sent_once(tmp_path: Path):
    bench = Bench(tmp_path, reply_to)
    bench.line.cut = True
    bench.submit("a")
    bench.settled()
    assert not bench.dispatcher.is_working
    assert not bench.dispatcher.is_idle
    with pytest.raises(EnvironmentFailedError):
        bench.dispatcher.send_unsent()
    bench.line.cut = False
    bench.dispatcher.send_unsent()
    bench.dispatcher.send_unsent()
    assert bench.line.sent == ["a"]
    assert bench.dispatcher.is_idle


def test_a_reply_that_no_session_could_send_is_given_up(tmp_path: Path):
    bench = Bench(tmp_path, reply_to)
    bench.line.cut = True
    bench.submit("a")
    bench.settled()
    for _ in range(dispatch.SEND_TRIES):
        with pytest.raises(EnvironmentFailedError):
            bench.dispatcher.send_unsent()
    bench.dispatcher.send_unsent()
    assert bench.dispatcher.is_idle


def test_a_reply_that_nobody_awaits_is_dropped_and_holds_up_no_other(tmp_path: Path):
    bench = Bench(tmp_path, reply_to)
    bench.line.gone = {"gone"}
    bench.submit("gone")
    bench.settled()
    assert bench.dispatcher.is_idle
    bench.line.gone, bench.line.cut = set(), True
    for text in ("a", "gone-later", "b"):
        bench.submit(text)
        bench.settled()
    bench.line.gone, bench.line.cut = {"gone-later"}, False
    bench.dispatcher.send_unsent()
    assert bench.line.sent == ["a", "b"]
    assert bench.dispatcher.is_idle


def test_a_reply_that_the_gateway_never_takes_is_given_up_and_ends_no_session(tmp_path: Path):
    bench = Bench(tmp_path, reply_to)
    bench.line.cut = True
    for run_id in ("endless", "b"):
        bench.submit(run_id)
        bench.settled()
    bench.line.cut, bench.line.never = False, {"endless"}
    bench.dispatcher.send_unsent()
    assert bench.line.sent == ["b"]
    assert bench.dispatcher.is_idle


def test_a_fault_of_ours_costs_one_order_and_not_the_agent(tmp_path: Path):
    def answer(received: Received) -> Reply | None:
        if run_of(received) == "fault":
            raise ZeroDivisionError
        return reply_to(received) if run_of(received) == "b" else None

    bench = Bench(tmp_path, answer)
    for text in ("fault", "no-order", "b"):
        bench.submit(text)
    bench.settled(3)
    assert bench.line.sent == ["b"]
    assert bench.dispatcher.is_idle
    status = read_status(tmp_path)
    assert status is not None
    assert [(one.run_id, one.outcome) for one in status.done] == [("b", "paused")]


def test_there_is_room_for_so_many_and_no_more(tmp_path: Path):
    end = threading.Event()

    def answer(order: Received) -> Reply:
        assert end.wait(HANG_S)
        return reply_to(order)

    bench = Bench(tmp_path, answer)
    taken = 0
    while bench.dispatcher.has_room:
        bench.submit(str(taken))
        taken += 1
    assert taken == dispatch.MOST_IN_HAND
    end.set()
    bench.settled(taken)
    assert bench.dispatcher.has_room


def test_an_order_that_hangs_keeps_no_process_alive(tmp_path: Path):
    def hang(order: Received) -> None:
        time.sleep(60)

    bench = Bench(tmp_path, hang)
    bench.submit("a")
    hanging = [thread for thread in threading.enumerate() if thread.name == "order"]
    assert hanging
    assert all(thread.daemon for thread in hanging)
