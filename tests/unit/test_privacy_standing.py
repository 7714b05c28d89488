"""What the coordinator says of each site's privacy: the newest word of it, failures included."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from report_runs import PRIVACY, Story

from fedfactory.contracts.codec import decode, encode
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.privacy import PrivacyStanding
from fedfactory.contracts.updates import Refusal, Reply
from fedfactory.operator.submission import LONGEST_RUN_S
from fedfactory.privacy.delta import delta_fault
from fedfactory.report.table import print_results
from fedfactory.rounds.events import ReplyAccepted, ReplyRefused
from site_agents.policy.holds import DAY_S, DEFAULT_HOLDS

STANDING = PrivacyStanding(
    epsilon_run=0.5, delta=1e-5, unit="row", accountant="RDP", unprotected_updates=0,
    unprotected_on=None,
)  # fmt: skip
WORK = WorkKey(
    coordinator="hub", run_id="r", round=1, kind="train", site="lumi", order_digest="sha256:0"
)


class Told(Story):
    """A story in which every answer says what holds at its site."""

    def __init__(self, **standings: PrivacyStanding) -> None:
        self.told = standings
        super().__init__(privacy=PRIVACY)

    def add(self, event):
        if isinstance(event, ReplyAccepted | ReplyRefused):
            event = replace(event, standing=self.told.get(event.site))
        super().add(event)


def holds(story: Story, site: str):
    return story.summary()["privacy"]["sites"][site]


def test_work_that_was_charged_and_failed_shows_in_epsilon_run() -> None:
    story = Told(lumi=STANDING)
    story.whole_round(1)
    story.sent(2)
    story.told["lumi"] = replace(STANDING, epsilon_run=2.25)
    for _ in range(4):
        story.refuse(2, "lumi")
    assert holds(story, "lumi")["epsilon_run"] == 2.25
    assert holds(story, "lumi")["guarantee"] == "(2.250, 1e-05)-DP per row"


def test_an_answer_that_came_too_late_counts_in_epsilon_run() -> None:
    story = Told(cesga=STANDING)
    story.sent(1)
    story.accept(1, "cesga")
    story.deadline(1)
    story.told["lumi"] = replace(STANDING, epsilon_run=1.75)
    story.accept(1, "lumi")
    assert holds(story, "lumi")["epsilon_run"] == 1.75


def test_epsilon_never_falls_by_an_answer_that_was_overtaken() -> None:
    story = Told(lumi=replace(STANDING, epsilon_run=2.0))
    story.whole_round(1)
    story.told["lumi"] = STANDING
    story.sent(2)
    story.accept(2, "lumi")
    assert holds(story, "lumi")["epsilon_run"] == 2.0


def test_a_population_without_a_bound_is_named_in_summary_and_table() -> None:
    without = replace(STANDING, unprotected_updates=12, unprotected_on="2026-11-30")
    story = Told(lumi=without, cesga=STANDING)
    story.whole_round(1)
    said = "no bound: 12 updates left without privacy, last on 2026-11-30"
    assert said in holds(story, "lumi")["guarantee"]
    assert holds(story, "lumi")["unprotected_updates"] == 12
    assert "no bound" not in holds(story, "cesga")["guarantee"]
    stream = io.StringIO()
    print_results(story.summary(), "runs/x", stream)
    assert said in " ".join(stream.getvalue().split())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon_run", -1.0),
        ("epsilon_run", 1e13),
        ("epsilon_run", 10**400),
        ("delta", 0),
        ("delta", 1.0),
        ("unprotected_updates", -1),
        ("unprotected_updates", 2**53 + 1),
        ("unprotected_updates", 3),  # and no day
        ("unprotected_on", "yesterday"),
        ("unprotected_on", "2026-11-30"),  # and none left
        ("accountant", "x" * 201),
        ("unit", "\x1b[2J"),
    ],
)
def test_a_standing_out_of_range_is_a_bad_reply(field, value) -> None:
    reply = Reply(
        update=None, refusal=Refusal(work=WORK, code="paused"), anchor=None, standing=STANDING
    )
    raw = encode(reply)
    assert decode(Reply, raw) == reply
    raw["standing"][field] = value
    with pytest.raises(ProtocolError):
        decode(Reply, raw)


def test_the_longest_plan_that_a_lead_signs_fits_the_default_policy() -> None:
    assert DEFAULT_HOLDS.plan_days * DAY_S > LONGEST_RUN_S


@pytest.mark.parametrize(
    ("delta", "units", "fits"),
    [
        (0.99, 1, True),
        (0.5, 2, False),
        (1 / 49, 49, False),
        (1e-5, 100_000, False),
        (1e-5, 99_999, True),
        (0.000999, 1000, True),
        (0.001, 1000, False),
    ],
)
def test_a_delta_is_below_one_in_the_units(delta, units, fits) -> None:
    assert (delta_fault(delta, units, size="n") is None) == fits
