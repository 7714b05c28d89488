"""What people of a site say, by its commands, to a pipeline that works: approve, deny, explain."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time

import pytest

from site_agents.cli.main import main
from site_agents.pipeline import Pending
from site_agents.policy import Hours
from site_agents.spool import KEEP_OF_RUN
from tests.sites.rig import OPEN, Site


@pytest.fixture
def waiting(capsys):
    """What `site-agent approvals --json` says of a site."""

    def ask(site: Site) -> list[dict]:
        capsys.readouterr()
        assert main(["approvals", "--home", str(site.home), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return ask


def explained(site: Site, text: str) -> tuple[int, str | None]:
    """The exit code of `policy explain`, and the code of the refusal that it tells."""
    path, out = site.folder / "order.json", io.StringIO()
    path.write_text(text)
    with contextlib.redirect_stdout(out):
        code = main(["policy", "explain", "--home", str(site.home), str(path)])
    told = re.search(r"^REFUSED (\w+):", out.getvalue(), re.MULTILINE)
    return code, told[1] if told else None


def say(site: Site, *words: str) -> int:
    return main([words[0], "--home", str(site.home), *words[1:]])


def test_nothing_leaves_before_a_person_looked_at_this_very_update(make_site, waiting):
    site = make_site(egress="every_round")
    text = site.delivery()
    assert isinstance(site.answer(text), Pending)
    assert list(site.received.iterdir()) == []
    (one,) = waiting(site)
    assert one["as_planned"]
    leaving = one["leaving"]
    assert [tensor["name"] for tensor in leaving["tensors"]] == ["b", "w"]
    assert leaving["norm_l2"] > 0
    assert leaving["epsilon_charged"] > 0
    assert leaving["lineage"] == "patients"
    site.restart()  # the daemon, too, may come and go
    assert isinstance(site.answer(text), Pending)
    assert waiting(site) == [one]
    assert say(site, "approve", one["id"]) == 0
    reply = site.answer(text)
    assert reply.update is not None
    assert reply.update.payload.blob.digest == leaving["blob"]["digest"]
    assert len(list(site.received.iterdir())) == 1
    assert waiting(site) == []
    assert site.executions() == 1


def test_a_denied_result_stays_whatever_is_approved_after_it(make_site, waiting):
    site = make_site(egress="first_round")
    first, second = site.delivery(round=1), site.delivery(round=2)
    assert isinstance(site.answer(first), Pending)
    assert say(site, "deny", waiting(site)[0]["id"], "--reason", "too exact") == 0
    assert site.answer(first).refusal.code == "policy_egress"
    assert explained(site, first) == (1, "policy_egress")
    assert isinstance(site.answer(second), Pending)
    assert say(site, "approve", waiting(site)[0]["id"]) == 0
    assert explained(site, second) == (0, None)
    assert site.answer(second).update is not None
    # From here on the run's results leave by themselves, and the denied one still does not.
    assert site.ask(round=3).update is not None
    assert site.answer(first).refusal.code == "policy_egress"
    site.write_policy(egress="automatic")
    assert site.answer(first).refusal.code == "policy_egress"
    assert len(list(site.received.iterdir())) == 2


def test_what_waits_is_not_pruned_by_later_work(make_site, waiting):
    site = make_site(egress="every_round", without_dp=OPEN)
    terms = site.coordinator.terms(privacy=None)
    texts = [site.delivery(terms, round=number) for number in range(1, 6)]
    assert len(texts) > KEEP_OF_RUN
    for text in texts:
        assert isinstance(site.answer(text), Pending)
    ids = [one["id"] for one in waiting(site)]
    assert len(ids) == len(texts)
    for name, text in zip(ids, texts, strict=True):
        assert say(site, "approve", name) == 0
        assert site.answer(text).update is not None
    assert site.executions() == len(texts)


def test_a_result_of_the_night_is_approved_by_day(make_site, waiting):
    site = make_site(egress="every_round")
    text = site.delivery()
    assert isinstance(site.answer(text), Pending)
    now = time.gmtime()
    minute = 60 * now.tm_hour + now.tm_min
    closed = Hours(start=(minute + 120) % 1440, end=(minute + 180) % 1440 or 1440, time_zone="UTC")
    site.write_policy(egress="every_round", hours=closed)
    assert site.code(round=2) == "policy_limits"
    assert say(site, "approve", waiting(site)[0]["id"]) == 0
    assert site.answer(text).update is not None


def test_a_refused_order_is_kept_and_explained(make_site, capsys):
    site = make_site(rounds=4)
    assert site.code() == "policy_limits"
    (kept,) = (site.home / "refused").iterdir()
    capsys.readouterr()
    assert main(["policy", "explain", "--home", str(site.home), str(kept)]) == 1
    told = capsys.readouterr().out
    assert "REFUSED policy_limits" in told
    assert (
        "decided by number of rounds (limits.rounds): the plan has 5 rounds, allowed are 4" in told
    )


def test_explain_and_the_agent_agree(make_site):
    """On one home: what explain says is what the pipeline then does."""
    site = make_site(without_dp=OPEN, gpu_hours_per_run=0.0004)
    terms = site.coordinator.terms(privacy=None)
    for changes in (
        {"round": 1},
        {"round": 1},  # done before: it is sent again
        {"round": 2},  # the run has used its GPU-hours: 1.5 s of 1.44 s
        {"round": 9},
        {"task": "echo"},
        {"site": "lumi"},
    ):
        text = site.delivery(terms, **changes)
        told = explained(site, text)
        refusal = site.answer(text).refusal
        assert told == ((0, None) if refusal is None else (1, refusal.code))
