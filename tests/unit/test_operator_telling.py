"""What operators read: tables and sentences, letter by letter; and which run they mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.questions import LogLine, SiteLogs
from fedfactory.operator.naming import find_run
from fedfactory.operator.telling import (
    finding_lines,
    log_lines,
    member_lines,
    run_lines,
    span,
)
from fedfactory.wire.operations import Finding
from tests.unit.operator_desk import DAY_S, NOW, member, row


def test_runs():
    rows = [
        row(status="running", round=1, ended_at=None, reason=""),
        row("20261120-090000-cd34", status="suspended", reason="the disk is full\x1b[2J"),
    ]
    assert run_lines(rows, (), NOW) == [
        "RUN                   STATUS     ROUND   TASK    STRATEGY  SITES  BY   SUBMITTED",
        "20261121-120000-ab12  running    1 of 2  digits  fedavg    2      ana  60 min ago",
        "20261120-090000-cd34  suspended  2 of 2  digits  fedavg    2      ana  60 min ago",
        "20261120-090000-cd34 is suspended: the disk is full\\x1b[2J",
    ]
    assert run_lines([], (), NOW) == ["no runs yet: `fedfactory run` submits one"]


def test_damaged_runs_are_named_below_the_table():
    left_out = ["old is damaged and left out: submission.json is missing"]
    damaged = row(damage="its journal ends in round 0")
    assert run_lines([damaged], left_out, NOW)[2:] == [
        "20261121-120000-ab12 is damaged: its journal ends in round 0",
        left_out[0],
    ]
    assert run_lines([], left_out, NOW) == left_out


def test_no_other_run_is_offered_for_one_that_is_not_there():
    with pytest.raises(UsageError, match="`fedfactory runs` lists them") as found:
        find_run("20261121-120000-ab13", [row()])
    assert "did you mean" not in str(found.value)


def test_members():
    members = [
        member("cesga"),
        member("lumi", connected=False, seen_at=NOW - 7200, valid_until=NOW + DAY_S),
        member("aa", status="invited", valid_until=NOW + 2 * DAY_S, version=None, seen_at=None),
        member("gone", status="revoked", reason="the pilot is over", connected=False),
        member("late", status="enrolled", valid_until=NOW - 1, connected=False),
        member("old", connected=False, reason="its fedfactory 0.9.0 is too far"),
        member("ana", role="operator", seen_at=None),
    ]
    assert member_lines(members, NOW) == [
        "NAME   ROLE      STATUS    CONNECTED  LAST SEEN  CERTIFICATE UNTIL     VERSION",
        "cesga  site      enrolled  yes        1 s ago    2027-02-04 08:00 UTC  0.1.0",
        "lumi   site      enrolled  no         2 h ago    2027-01-16 08:00 UTC  0.1.0",
        "aa     site      invited   yes        -          2027-01-17 08:00 UTC  -",
        "gone   site      revoked   no         1 s ago    2027-02-04 08:00 UTC  0.1.0",
        "late   site      enrolled  no         1 s ago    2027-01-15 07:59 UTC  0.1.0",
        "old    site      enrolled  no         1 s ago    2027-02-04 08:00 UTC  0.1.0",
        "ana    operator  enrolled  -          -          2027-02-04 08:00 UTC  0.1.0",
        "site lumi has a certificate for 24 h only: its agent should have renewed it; ask its administrator for `site-agent status`",
        "site aa has not enrolled yet; the invitation ends in 2 d",
        "site gone is revoked: the pilot is over",
        "site late has expired: invite it again (fedfactory invite late)",
        "site old is turned away: its fedfactory 0.9.0 is too far",
    ]


def test_a_site_that_does_not_answer_and_one_that_does():
    line = LogLine(at=NOW, round=3, kind="train", outcome="budget_exhausted", seconds=None)
    assert log_lines(SiteLogs(status="let_out", lines=(line,)), "lumi") == [
        "WHEN                     ROUND  WORK   OUTCOME                                                          SECONDS",
        "2027-01-15 08:00:00 UTC  3      train  what the site's privacy budget has left does not cover the plan  -",
    ]
    assert log_lines(SiteLogs(status="let_out", lines=()), "lumi") == [
        "lumi has no record of this run"
    ]
    for logs in (
        None,
        SiteLogs(status="withheld", lines=()),
        SiteLogs(status="not_authorised", lines=()),
    ):
        (sentence,) = log_lines(logs, "lumi")
        assert sentence.startswith("lumi ")


def test_findings_move_no_cursor():
    finding = Finding(site="lumi", code="offline", sentence="gone\x1b[1A")
    assert finding_lines([finding]) == ["lumi cannot take part now: gone\\x1b[1A (offline)"]


@pytest.mark.parametrize(
    ("seconds", "told"), [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (3e5, "3 d")]
)
def test_spans(seconds, told):
    assert span(seconds) == told


# ---- which run ----------------------------------------------------------------------------------


def test_a_run_by_id_by_beginning_and_the_last():
    rows = [row("20261121-a"), row("20261121-ab"), row("20261120-c")]
    assert find_run("last", rows) is rows[0]
    assert find_run("20261121-a", rows) is rows[0]  # whole ids go before beginnings
    assert find_run("20261121-ab", rows) is rows[1]
    assert find_run("20261120", rows) is rows[2]
    with pytest.raises(UsageError, match="begins 2 runs"):
        find_run("20261121", rows)
    with pytest.raises(UsageError, match="unknown run 'x'; known: 20261120-c"):
        find_run("x", rows)
    with pytest.raises(UsageError, match="unknown run ''"):
        find_run("", rows)
    with pytest.raises(UsageError, match="no runs yet"):
        find_run("last", [])


@given(st.lists(st.text("ab", min_size=1, max_size=4), unique=True, min_size=1), st.data())
def test_a_beginning_means_a_run_exactly_if_it_is_the_only_one(ids, data):
    rows = [row(run_id) for run_id in ids]
    wanted = data.draw(st.sampled_from(ids))
    name = wanted[: data.draw(st.integers(1, len(wanted)))]
    begun = [run_id for run_id in ids if run_id.startswith(name)]
    if name in ids or len(begun) == 1:
        assert find_run(name, rows).run_id == (name if name in ids else begun[0])
    else:
        with pytest.raises(UsageError, match=f"begins {len(begun)} runs"):
            find_run(name, rows)
