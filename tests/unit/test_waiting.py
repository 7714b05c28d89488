"""How often a site asks for messages: once for each that it was told of, and to the end if unsure."""

from hypothesis import given
from hypothesis import strategies as st

from site_agents.waiting import Waiting


class Queue:
    """A coordinator with messages, and a site that pulls them; `pulls` counts."""

    def __init__(self):
        self.there = 0
        self.pulls = 0
        self.waiting = Waiting()

    def take(self):
        while self.waiting.pulls():
            self.pulls += 1
            if self.there:
                self.there -= 1
                self.waiting.found()


def test_a_site_that_was_told_nothing_looks_until_there_is_none():
    queue = Queue()
    queue.there = 2
    queue.take()
    assert (queue.there, queue.pulls) == (0, 3)
    queue.take()
    assert queue.pulls == 3


def test_as_many_are_pulled_as_were_told_of():
    queue = Queue()
    queue.take()
    queue.there = 3
    queue.waiting.told(1)
    queue.waiting.told(2)
    queue.take()
    assert (queue.there, queue.pulls) == (0, 1 + 3)


def test_who_stops_halfway_goes_on_later():
    queue = Queue()
    queue.take()
    queue.there = 2
    queue.waiting.told(2)
    assert queue.waiting.pulls()
    queue.there -= 1
    queue.waiting.found()
    queue.take()
    assert (queue.there, queue.pulls) == (0, 2)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans())))
def test_nothing_that_was_told_of_stays_behind(steps):
    """Also where a number was not told, as long as somebody says that it is not known."""
    queue = Queue()
    for number, silent, takes in steps:
        queue.there += number
        queue.waiting.told(0 if silent or number == 0 else number)
        if takes:
            queue.take()
            assert queue.there == 0
    queue.take()
    assert queue.there == 0
