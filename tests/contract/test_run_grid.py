"""Flower's Grid of a run's process, over a real link and engine; the sites are a thread."""

import socket
import threading

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD
from fedfactory.coordinator.flower_seam import assume_app_identity
from fedfactory.coordinator.link_server import LinkServer
from fedfactory.coordinator.running.link import Link, Replied
from fedfactory.coordinator.running.run_grid import RunGrid
from tests.patience import prompt
from tests.unit.test_link import RUN, Doors

SITES = ("cesga", "lumi", "vega")


@pytest.fixture
def played(tmp_path):
    """A grid, and what lets its sites answer: all but `silent` do, when they are rung."""
    doors, silent = Doors(tmp_path / "blobs"), set()
    ours, theirs = socket.socketpair()
    server = LinkServer(ours, doors, RUN, SITES, moved_before={})

    def ring(site):
        while (found := server.fetch(site)) is not None:
            if site not in silent:
                server.reply(site, found.message_id, found.text.upper(), None)

    doors.ring = ring
    grid = RunGrid()
    with Link(theirs, lambda heard: isinstance(heard, Replied) and grid.keep(heard)) as link:
        greeting = link.hello()
        assume_app_identity(greeting.run)
        grid.open(link, greeting)
        yield grid, silent
    server.close()


def messages(grid, *sites):
    return [
        grid.create_message(
            RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: f"work of {site}"})}),
            "train",
            grid.nodes[site],
            "1",
            ttl=60.0,
        )
        for site in sites
    ]


def texts(replies):
    return sorted(str(reply.content[MESSAGE_RECORD][MESSAGE_FIELD]) for reply in replies)


def test_it_is_a_grid_of_flowers_and_knows_the_runs_nodes(played):
    grid, _ = played
    assert isinstance(grid, Grid)
    assert set(grid.nodes) == set(SITES)
    assert sorted(grid.get_node_ids()) == sorted(grid.nodes.values())
    grid.set_run("what Flower says of a run")
    assert grid.run == "what Flower says of a run"


def test_every_reply_comes_once(played):
    grid, _ = played
    assert texts(grid.send_and_receive(messages(grid, *SITES))) == [
        "WORK OF CESGA", "WORK OF LUMI", "WORK OF VEGA",
    ]  # fmt: skip
    (sent,) = grid.push_messages(messages(grid, "lumi"))
    with prompt(10):
        while not (found := grid.pull_messages([sent, "another's"])):
            pass
    assert texts(found) == ["WORK OF LUMI"]
    assert grid.pull_messages([sent]) == []


def test_who_does_not_answer_is_not_waited_for_beyond_the_timeout(played):
    grid, silent = played
    silent.add("vega")
    with prompt(5):
        found = grid.send_and_receive(messages(grid, *SITES), timeout=0.3)
    assert texts(found) == ["WORK OF CESGA", "WORK OF LUMI"]


def test_a_message_that_flower_refuses_has_no_id_and_the_others_go(played):
    grid, _ = played
    good, bad = messages(grid, "cesga", "lumi")
    bad.metadata.__dict__["_dst_node_id"] = 12345
    first, second = grid.push_messages([bad, good])
    assert (first, bool(second)) == ("", True)
    assert texts(grid.send_and_receive([bad, *messages(grid, "vega")])) == ["WORK OF VEGA"]


def test_pushing_and_pulling_may_be_two_threads(played):
    grid, _ = played
    found = []

    def work(site):
        for _ in range(20):
            found.extend(texts(grid.send_and_receive(messages(grid, site), timeout=20)))

    threads = [threading.Thread(target=work, args=(site,)) for site in SITES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    assert set(found) == {f"WORK OF {site.upper()}" for site in SITES}
    assert isinstance(messages(grid, "cesga")[0], Message)
