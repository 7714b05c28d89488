"""An agent and its gateway: enrolled by itself, renewed by itself, back at once, told to go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.plans import RunTerms, SignedTerms
from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.contracts.questions import LogsRequest, Query, SignedLogsRequest
from fedfactory.contracts.versions import own_version
from fedfactory.identity.enrolment import load_identity
from site_agents.enrolling import enrol
from site_agents.gateway_client import GatewayClient
from tests.patience import stretched, until
from tests.sites.consortium import SITE, Hub, RunningAgent
from tests.sites.rig import INITIAL, TRAINING


@pytest.fixture
def make_hub(tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    made: list[Hub] = []

    def make(**options: timedelta) -> Hub:
        made.append(Hub(tmp_path, **options))
        made[-1].start()
        return made[-1]

    yield make
    for hub in made:
        hub.close()


@pytest.fixture
def start(make_hub: Callable[..., Hub]) -> Iterator[Callable[[Hub], RunningAgent]]:
    made: list[RunningAgent] = []

    def begin(hub: Hub) -> RunningAgent:
        invitation = None if (hub.folder / "site").exists() else hub.invitation()
        made.append(RunningAgent(hub, invitation, hub.address))
        return made[-1]

    yield begin
    for agent in made:
        agent.close()


def terms() -> RunTerms:
    privacy = PrivacyPlan(
        target_epsilon=3.0, noise_multiplier=None, delta=1e-5, clip_norm_l2=1.0,
        grad_sample_mode="hooks", evaluation_noise_multiplier=8.0, evaluation_loss_clip=5.0,
    )  # fmt: skip
    return RunTerms(
        coordinator="hub", run_id="run-1", sites=(SITE,), task="digits",
        task_parameters={"model": "mlp"}, initial=INITIAL, strategy="fedavg", strategy_options={},
        mode="sync", training=TRAINING, rounds=5, evaluate=True,
        privacy=privacy, max_model_bytes=10_000, max_update_norm_l2=10.0, nonce="n",
        not_after=time.time() + 600,
    )  # fmt: skip


def test_it_enrols_itself_also_when_the_gateway_comes_up_later(make_hub, start) -> None:
    hub = make_hub()
    invitation, address = hub.invitation(), hub.address
    hub.stop()
    agent = RunningAgent(hub, invitation, address)
    try:
        agent.until("not enrolled")
        hub.start()
        status = agent.until("connected")
        assert 0 < status.certificate_ends - time.time() < 86400 + 60
        assert not list(agent.home.rglob("invitation.json")), "no token is left"
    finally:
        agent.close()


def test_what_waits_is_fetched_and_a_reply_that_nobody_awaits_is_said_to_be_none(
    make_hub, start
) -> None:
    hub = make_hub()
    agent = start(hub)
    agent.until("connected")
    client = GatewayClient(hub.address, load_identity(agent.home / "identity"))
    try:
        assert client.fetch() is None
        assert client.send("no message of ours", "{}", "") is False
        with pytest.raises(ProtocolError, match="may be 1000000 bytes, not 1000001"):
            client.send("no message of ours", " " * 1_000_001, "")
        assert client.send("no message of ours", " " * 1_000_000, "") is False
    finally:
        client.close()


def test_it_answers_questions(make_hub, start) -> None:
    hub = make_hub()
    start(hub).until("connected")
    until(lambda: hub.gateway.connected() == [SITE])
    signed = terms()
    plan = SignedTerms(terms=signed, signature=hub.operator.signer.sign(signed))
    answer = hub.ask(Query(site=SITE, signed=plan, receipt=None, logs=None))
    assert answer is not None
    assert (answer.preflight.code, answer.preflight.version) == ("", own_version())
    wanted = LogsRequest(
        coordinator="hub", run_id="run-1", site=SITE, nonce="once", not_after=time.time() + 60
    )
    wish = SignedLogsRequest(request=wanted, signature=hub.operator.signer.sign(wanted))
    answer = hub.ask(Query(site=SITE, signed=None, receipt=None, logs=wish))
    assert answer.logs.status == "let_out"


def test_it_renews_its_certificate_and_never_seems_gone(make_hub, start) -> None:
    hub = make_hub(lifetime=timedelta(seconds=stretched(9)))
    agent = start(hub)
    first = agent.until("connected").certificate_ends
    began = time.monotonic()
    until(lambda: agent.status.certificate_ends > first + 8, 30)
    assert time.monotonic() - began > 4, "a certificate is used for a good part of its time"
    hub.heard.clear()
    second = agent.status.certificate_ends
    until(lambda: agent.status.certificate_ends > second, 30)
    until(lambda: hub.heard)  # the new certificate is known before its connection is heard of
    assert {what for what, _ in hub.heard} == {"came"}
    assert hub.gateway.connected() == [SITE]
    assert agent.status.connection == "connected"


def test_it_is_back_at_once_after_a_hang_up_and_a_restart(make_hub, start) -> None:
    hub = make_hub()
    start(hub).until("connected")
    until(lambda: hub.gateway.connected() == [SITE])
    time.sleep(5.1)  # a session that stood
    hub.heard.clear()
    hub.hang_up()
    until(lambda: [what for what, _ in hub.heard] == ["went", "came"])
    (_, went), (_, came) = hub.heard
    assert 0.1 < came - went < stretched(2.0), "0.2 to 0.4 s, and what a busy machine adds"
    hub.stop()
    time.sleep(3)
    hub.heard.clear()
    up = time.monotonic()
    hub.start()
    until(lambda: hub.heard, 20)
    assert hub.heard[0][1] - up < stretched(5.0)


def test_a_site_that_is_thrown_out_does_not_hammer(make_hub, start) -> None:
    hub = make_hub()
    start(hub).until("connected")
    hub.heard.clear()
    end = time.monotonic() + 6
    while time.monotonic() < end:
        hub.hang_up()
        time.sleep(0.02)
    assert sum(what == "came" for what, _ in hub.heard) <= 10


def test_a_revoked_site_says_so_once_and_can_be_enrolled_anew(make_hub, start, caplog) -> None:
    hub = make_hub()
    agent = start(hub)
    agent.until("connected")
    with caplog.at_level(logging.WARNING, "site_agents.agent"):
        hub.revoke()
        status = agent.until("refused")
        time.sleep(3)
    assert "cut off" in status.detail
    assert "invitation" in status.detail
    # A call under way may end as any cut one does, and say so, before the next tells why.
    said = [r for r in caplog.records if r.name == "site_agents.agent"]
    assert len([r for r in said if "cut off" in r.getMessage()]) == 1
    calls = len(hub.callers)
    time.sleep(1)
    assert len(hub.callers) == calls
    enrol(agent.home, hub.invitation())
    agent.until("connected", 20)


def test_an_ended_certificate_says_what_to_do(make_hub, start) -> None:
    hub = make_hub(lifetime=timedelta(seconds=stretched(3)))
    agent = start(hub)
    agent.until("connected")
    hub.stop()
    status = agent.until("refused", 30)
    assert "invitation" in status.detail
    hub.start()
    enrol(agent.home, hub.invitation())
    agent.until("connected", 20)
