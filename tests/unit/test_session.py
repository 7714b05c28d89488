"""When a site fetches: after a ring, as long as more waits, while there is room, and by itself."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError, IdentityError
from site_agents import session as session_module
from site_agents.gateway_client import Fetched, Rung
from site_agents.session import Session
from tests.patience import until

RING = Rung(question_id="", question=None, revocation=None)


class Gateway:
    """What lies at the coordinator for a site, and the doorbell; it is the Line, too."""

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.rings: queue.SimpleQueue[Rung | FedfactoryError | None] = queue.SimpleQueue()
        self.fetches = 0
        self.while_it_looks: Callable[[], None] = lambda: None

    def put(self, *names: str) -> None:
        for name in names:
            self.waiting.put(name)

    def ring(self) -> None:
        self.rings.put(RING)

    # ---- what a Session asks of its Line -------------------------------------------------------

    def listen(self) -> Iterator[Rung]:
        while (ring := self.rings.get()) is not None:
            if isinstance(ring, FedfactoryError):
                raise ring
            yield ring

    def fetch(self) -> Fetched | None:
        self.fetches += 1
        if self.waiting.empty():
            self.while_it_looks()
            return None
        name = self.waiting.get()
        return Fetched(message_id=name, text="", more=not self.waiting.empty())

    def renewal_due_in_s(self) -> float:
        return 3600.0


class Desk:
    """The dispatcher: what it took, and how much more it takes."""

    def __init__(self, room: int = 1000) -> None:
        self.taken: list[str] = []
        self.room = room
        self.is_idle = True

    @property
    def has_room(self) -> bool:
        return self.room > 0

    def submit(self, fetched: Fetched) -> None:
        self.room -= 1
        self.taken.append(fetched.message_id)

    def send_unsent(self) -> None: ...


class Site:
    """A session that attends in a thread of its own."""

    def __init__(self, gateway: Gateway, desk: Desk) -> None:
        self.rung, self.draining, self.over = (threading.Event() for _ in range(3))
        self.session = Session(
            line=cast("Any", gateway),
            dispatcher=cast("Any", desk),
            answering=cast("Any", None),
            revocations=cast("Any", None),
            watch=cast("Any", type("Watch", (), {"moves": lambda _: None})()),
            rung=self.rung,
            draining=self.draining,
            is_done=self.over.is_set,
            linger_s=None,
        )
        self._gateway = gateway

    def begin(self) -> None:
        self.session.begin()
        self.thread = threading.Thread(target=self.session.attend)
        self.thread.start()

    def close(self) -> None:
        self._gateway.rings.put(None)
        self.over.set()
        self.rung.set()
        self.thread.join()


@pytest.fixture
def attend() -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def begin(gateway: Gateway, desk: Desk) -> Site:
        gateway.ring()  # a gateway says at once that it hears
        made.append(Site(gateway, desk))
        made[-1].begin()
        return made[-1]

    yield begin
    for site in made:
        site.close()


def test_what_lies_there_is_taken_at_the_begin_and_after_a_ring(attend) -> None:
    gateway, desk = Gateway(), Desk()
    gateway.put("a", "b", "c")
    attend(gateway, desk)
    until(lambda: desk.taken == ["a", "b", "c"])
    gateway.put("d", "e")
    gateway.ring()
    until(lambda: desk.taken == ["a", "b", "c", "d", "e"])


def test_without_a_ring_nothing_is_fetched_before_the_site_looks_by_itself(
    attend, monkeypatch
) -> None:
    monkeypatch.setattr(session_module, "POLL_S", 0.5)
    gateway, desk = Gateway(), Desk()
    attend(gateway, desk)
    until(lambda: gateway.fetches >= 2)
    before = gateway.fetches
    gateway.put("a")  # its ring is lost
    until(lambda: desk.taken == ["a"])
    assert gateway.fetches <= before + 2


def test_what_finds_no_room_stays_and_is_fetched_as_soon_as_there_is(attend) -> None:
    gateway, desk = Gateway(), Desk(room=2)
    gateway.put("a", "b", "c")
    site = attend(gateway, desk)
    until(lambda: desk.taken == ["a", "b"])
    gateway.ring()
    until(gateway.rings.empty)
    assert not gateway.waiting.empty()
    desk.room = 1
    site.rung.set()  # as a dispatcher does whenever an order is answered
    until(lambda: desk.taken == ["a", "b", "c"])


def test_a_ring_while_the_site_finds_nothing_is_not_lost(attend) -> None:
    gateway, desk = Gateway(), Desk()

    def another_comes() -> None:
        gateway.while_it_looks = lambda: None
        gateway.put("a")
        gateway.ring()
        until(gateway.rings.empty)

    gateway.while_it_looks = another_comes
    attend(gateway, desk)
    until(lambda: desk.taken == ["a"])


def test_a_site_that_drains_fetches_nothing(attend) -> None:
    gateway, desk = Gateway(), Desk()
    site = attend(gateway, desk)
    until(lambda: gateway.fetches >= 1)
    site.draining.set()
    gateway.put("a")
    before = gateway.fetches
    gateway.ring()
    until(gateway.rings.empty)
    site.rung.set()
    site.close()
    assert (gateway.fetches, desk.taken) == (before, [])


@pytest.mark.parametrize(
    "error", [EnvironmentFailedError("the gateway cannot be reached"), IdentityError("cut off")]
)
def test_a_gateway_that_does_not_hear_the_site_ends_the_session_with_its_reason(error) -> None:
    gateway = Gateway()
    gateway.rings.put(error)
    site = Site(gateway, Desk())
    with pytest.raises(type(error), match=str(error)):
        site.session.begin()
    assert site.session.lasted_s == 0.0
    assert gateway.fetches == 0


def test_a_gateway_that_says_nothing_is_not_waited_for_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(session_module, "CALL_TIMEOUT_S", 0.1)
    gateway = Gateway()
    with pytest.raises(EnvironmentFailedError, match="did not answer within"):
        Site(gateway, Desk()).session.begin()
    gateway.rings.put(None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8))
def test_everything_that_a_ring_came_for_is_taken_whatever_room_there_is(
    steps: list[tuple[int, int]],
) -> None:
    gateway, desk = Gateway(), Desk(room=0)
    gateway.ring()
    site = Site(gateway, desk)
    site.begin()
    try:
        put = 0
        for comes, room in steps:
            gateway.put(*(str(put + number) for number in range(comes)))
            put += comes
            gateway.ring()
            desk.room = room
            site.rung.set()
        desk.room = put + 1
        site.rung.set()
        until(lambda: len(desk.taken) == put)
        assert desk.taken == [str(number) for number in range(put)]
    finally:
        site.close()
