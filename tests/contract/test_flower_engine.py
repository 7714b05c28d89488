"""What we use of Flower's private modules in the coordinator, against the installed version."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.task_identity import TaskIdentity

from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError
from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD
from fedfactory.coordinator import flower_seam
from fedfactory.coordinator.flower_seam import (
    ANSWERED_KEPT,
    OPEN_KEPT,
    Engine,
    assume_app_identity,
    from_bytes,
    to_bytes,
)

SITES = ("cesga", "cyfronet", "lumi")


@pytest.fixture
def engine() -> Engine:
    engine = Engine(SITES)
    assume_app_identity(engine.run)
    return engine


def order(engine: Engine, site: str, text: str = "an order", ttl: float = 60.0) -> bytes:
    content = RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: text})})
    return to_bytes(Message(content, engine.nodes[site], "train", group_id="3", ttl=ttl))


def push(engine: Engine, site: str, text: str = "an order", ttl: float = 60.0) -> str:
    pushed = engine.push(order(engine, site, text, ttl))
    assert pushed is not None
    assert pushed[1] == site
    return pushed[0]


def answer(engine: Engine, site: str, message_id: str, text: str = "done") -> Message:
    assert engine.begin_reply(site, message_id)
    assert engine.reply(message_id, text)
    reply = engine.pull(message_id)
    assert reply is not None
    return from_bytes(reply)


def holds(engine: Engine) -> tuple[int, int]:
    return engine._state.num_message_ins(), engine._state.num_message_res()


def test_a_message_goes_out_and_its_reply_comes_back_as_flowers(engine: Engine) -> None:
    sent = push(engine, "cesga", "Größe: 7 µm")
    found = engine.fetch("cesga")
    assert found is not None
    assert (found.message_id, found.text, found.more) == (sent, "Größe: 7 µm", False)
    reply = answer(engine, "cesga", sent, '{"a": "ü\\u0000\ud7ff"}')
    assert reply.metadata.reply_to_message_id == sent
    assert reply.metadata.src_node_id == engine.nodes["cesga"]
    assert reply.metadata.dst_node_id == SUPERLINK_NODE_ID
    assert (reply.metadata.message_type, reply.metadata.group_id) == ("train", "3")
    assert reply.content[MESSAGE_RECORD][MESSAGE_FIELD] == '{"a": "ü\\u0000\ud7ff"}'
    assert holds(engine) == (0, 0)


def test_what_waits_is_fetched_once_oldest_first_and_by_its_site_alone(engine: Engine) -> None:
    sent = [push(engine, "lumi", str(number)) for number in range(5)]
    push(engine, "cesga")
    found = [engine.fetch("lumi") for _ in range(6)]
    assert [one.message_id for one in found if one] == sent
    assert [one.more for one in found if one] == [True, True, True, True, False]
    assert found[-1] is None
    assert engine.fetch("cyfronet") is None
    assert engine.fetch("a-stranger") is None


def test_flowers_own_look_agrees_that_what_was_fetched_is_delivered(engine: Engine) -> None:
    push(engine, "cesga", "one")
    push(engine, "cesga", "two")
    assert engine.fetch("cesga") is not None
    (left,) = engine._state.get_message_ins(engine.nodes["cesga"], limit=None)
    assert left.content[MESSAGE_RECORD][MESSAGE_FIELD] == "two"


def test_a_message_whose_time_is_over_is_not_given_and_not_kept(engine: Engine) -> None:
    push(engine, "cesga", "late", ttl=0.05)
    fetched = push(engine, "lumi", "fetched in time", ttl=0.2)
    assert engine.fetch("lumi") is not None
    time.sleep(0.25)
    assert engine.fetch("cesga") is None
    assert engine.begin_reply("lumi", fetched)
    assert not engine.reply(fetched, "too late")
    assert engine.begin_reply("lumi", fetched) is None
    push(engine, "cyfronet", ttl=0.05)
    time.sleep(0.1)
    push(engine, "cyfronet")
    assert holds(engine) == (1, 0)
    assert len(engine._waiting["cyfronet"]) == 1


def test_only_who_was_given_a_message_answers_it_and_once(engine: Engine) -> None:
    sent = push(engine, "cesga")
    with pytest.raises(IdentityError):
        engine.begin_reply("cesga", sent)  # it did not fetch it
    engine.fetch("cesga")
    with pytest.raises(IdentityError):
        engine.begin_reply("lumi", sent)
    assert engine.begin_reply("cesga", "no message") is None
    assert engine.begin_reply("cesga", sent) is True
    with pytest.raises(EnvironmentFailedError):
        engine.begin_reply("cesga", sent)
    engine.postpone(sent)
    answer(engine, "cesga", sent)
    assert engine.begin_reply("cesga", sent) is False  # sent again
    assert engine.begin_reply("lumi", sent) is None


def test_what_is_remembered_of_answers_is_bounded(engine: Engine) -> None:
    sent = []
    for _ in range(ANSWERED_KEPT + 5):
        sent.append(push(engine, "cesga"))
        engine.fetch("cesga")
        answer(engine, "cesga", sent[-1])
    assert engine.begin_reply("cesga", sent[-1]) is False
    assert engine.begin_reply("cesga", sent[0]) is None
    assert (len(engine._open), *holds(engine)) == (0, 0, 0)


def test_a_site_that_is_asked_again_and_again_keeps_the_latest(engine: Engine) -> None:
    other = push(engine, "lumi")
    first = push(engine, "cesga")
    assert engine.fetch("cesga")
    for number in range(3 * OPEN_KEPT):
        push(engine, "cesga", str(number))
    assert holds(engine) == (OPEN_KEPT + 1, 0)
    assert len(engine._waiting["cesga"]) == OPEN_KEPT
    assert engine.begin_reply("cesga", first) is None
    found = engine.fetch("cesga")
    assert found is not None
    assert found.text == str(2 * OPEN_KEPT)
    answer(engine, "cesga", found.message_id)
    assert engine.fetch("lumi") is not None
    answer(engine, "lumi", other)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.metadata.__dict__.update(_dst_node_id=12345),
        lambda m: m.metadata.__dict__.update(_run_id=12345),
        lambda m: m.metadata.__dict__.update(_src_node_id=12345),
        lambda m: m.metadata.__dict__.update(_reply_to_message_id="x"),
        lambda m: m.metadata.__dict__.update(_created_at=0.0),
    ],
    ids=["node", "run", "source", "reply", "time"],
)
def test_what_flower_refuses_is_said(engine: Engine, spoil: Callable[[Message], Any]) -> None:
    message = from_bytes(order(engine, "cesga"))
    spoil(message)
    assert engine.push(to_bytes(message)) is None
    assert engine.fetch("cesga") is None
    assert holds(engine) == (0, 0)


def test_each_engine_is_its_own(engine: Engine) -> None:
    other = Engine(SITES)
    assert other.run != engine.run
    assert not set(other.nodes.values()) & set(engine.nodes.values())
    assert other.push(order(engine, "cesga")) is None
    assert holds(other) == (0, 0)


def test_the_engine_keeps_going_without_heartbeats(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claimed run would have failed after a minute, and an inactive node gone offline."""
    from datetime import UTC, datetime, timedelta

    import flwr.server.superlink.linkstate.in_memory_linkstate as linkstate
    from flwr.supercore.corestate import in_memory_corestate as corestate

    later = datetime.now(UTC) + timedelta(days=40)
    for module in (linkstate, corestate):
        monkeypatch.setattr(module, "now", lambda: later)
    assert engine._state.get_nodes(engine.run) == set(engine.nodes.values())
    assert engine._state.get_run_info(run_ids=[engine.run])[0].finished_at == ""


def test_the_state_is_flowers_own_and_holds_what_we_read(engine: Engine) -> None:
    assert type(engine._state) is InMemoryLinkState
    sent = push(engine, "cesga")
    assert engine._state.message_ins_store[sent].metadata.delivered_at == ""
    engine._state._check_stored_messages({sent, "unknown"})
    assert sent in engine._state.message_ins_store


def test_messages_are_built_under_the_runs_identity(engine: Engine) -> None:
    assert TaskIdentity.run_id == engine.run
    message = from_bytes(order(engine, "lumi"))
    assert message.metadata.run_id == engine.run
    assert message.metadata.src_node_id == SUPERLINK_NODE_ID


def test_an_error_survives_the_wire() -> None:
    assume_app_identity(7)
    content = RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: "x"})})
    asked = Message(content, 5, "train", ttl=60.0)
    asked.metadata.__dict__["_message_id"] = "asked"
    again = from_bytes(to_bytes(Message(Error(3, "gone"), reply_to=asked)))
    assert (again.has_content(), again.error.code, again.error.reason) == (False, 3, "gone")


def test_many_threads_lose_nothing_and_take_nothing_twice(engine: Engine) -> None:
    taken: list[str] = []
    lock = threading.Lock()
    sent: list[str] = []

    def live(site: str) -> None:
        while len(taken) < 3 * 40:
            found = engine.fetch(site)
            if found is not None:
                reply = answer(engine, site, found.message_id, found.text)
                with lock:
                    taken.append(str(reply.content[MESSAGE_RECORD][MESSAGE_FIELD]))

    threads = [threading.Thread(target=live, args=(site,)) for site in SITES * 2]
    for thread in threads:
        thread.start()
    for number in range(40):
        for site in SITES:
            sent.append(f"{site} {number}")
            push(engine, site, sent[-1])
    for thread in threads:
        thread.join(30)
    assert sorted(taken) == sorted(sent)
    assert holds(engine) == (0, 0)


def test_the_environment_keeps_flower_offline(tmp_path: Any) -> None:
    found = flower_seam.flower_environment(tmp_path)
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert found["FLWR_HOME"] == str(tmp_path)
