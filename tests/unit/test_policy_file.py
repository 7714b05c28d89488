"""The policy file: read from the disk each time, by place, and closed when it does not hold."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from site_agents.policy import Hours, PolicyFileError, Range
from site_agents.policy.text import render
from site_agents.policy_file import MAX_BYTES, load_policy, local_minute
from tests.policy_orders import POLICY, WITHOUT_DP

TEXT = render(
    replace(POLICY, without_dp=WITHOUT_DP, hours=Hours(start=1200, end=360, time_zone="UTC"))
)


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def at(path: Path, text: str, found: str) -> str:
    """`file:line:column` of the first place where `found` stands."""
    start = text.index(found)
    line = text.count("\n", 0, start) + 1
    return f"{path}:{line}:{start - text.rfind(chr(10), 0, start)}: "


def test_a_change_of_the_file_counts_at_the_next_reading(tmp_path):
    path = written(tmp_path, TEXT)
    before = load_policy(path)
    assert before.rounds == 10
    path.write_text(TEXT.replace("rounds: 10", "rounds: 9"))
    assert load_policy(path).rounds == 9
    assert load_policy(path).version != before.version


def test_comments_and_layout_are_no_new_version(tmp_path):
    path = written(tmp_path, TEXT)
    before = load_policy(path).version
    path.write_text("# a note\n" + TEXT.replace("{from: 1, to: 4}", "{to: 4, from: 1}"))
    assert load_policy(path).version == before


# what is written, in place of what, the place that the error names, what it says
WRONG = [
    ("rounds: 10", "rounds: ten", "ten", "limits.rounds: expected a whole number"),
    ("rounds: 10", "rounds: 0", "rounds: 0", "limits.rounds=0: expected a whole number from 1"),
    ("rounds: 10", "rounds: 1_0", "1_0", "limits.rounds: expected a whole number"),
    ("rounds: 10", "rounds: [10]", "[10]", "limits.rounds: expected a whole number"),
    ("rounds: 10", "rounds: .inf", ".inf", "limits.rounds: expected a whole number"),
    ("rounds: 10", "round: 10", "round: 10", "did you mean 'rounds'?"),
    ("rounds: 10", "rounds: 10\n  rounds: 900", "rounds: 900", "the key comes twice"),
    ("  rounds: 10\n", "", "gpu_hours_per_run", "limits.rounds: the key is missing"),
    ("dp: optional", "dp: yes", "yes", "expected one of required, optional; found 'yes'"),
    ("dp: optional", "dp: Optional", "Optional", "expected one of required, optional"),
    ("  min_examples: 100\n", "", "dp: optional", "min_examples, because dp is optional"),
    ('reason: "public data"', "reason: ''", "reason: ''", "a sentence that says why"),
    ('on: "2026-11-21"', "on: today", "on: today", "a day, YYYY-MM-DD"),
    ('on: "2026-11-21"', 'on: "2026-02-31"', 'on: "2026-02-31"', "a day, YYYY-MM-DD"),
    ("epsilon_per_run: 3.0", "epsilon_per_run: .inf", ".inf", "expected a number"),
    ("epsilon_per_run: 3.0", "epsilon_per_run: 1e999", "1e999", "expected a finite number"),
    ("epsilon_per_run: 3.0", "epsilon_per_run: 11", "epsilon_per_run: 11", "at most"),
    ("delta: 1e-05", "delta: 1.5", "delta: 1.5", "a number between 0 and 1"),
    ("egress: automatic", "egress: off", "off", "expected one of automatic"),
    ("egress: automatic", "egress: &a automatic", "&a", "no anchors"),
    ("egress: automatic", "egress: *a", "*a", "no anchors or aliases"),
    ("egress: automatic", "egress: !!python/name:os.system x", "!!python", "no tags"),
    (
        "egress: automatic",
        "egress: {a: {b: {c: {d: {e: {f: {g: {h: 1}}}}}}}}",
        "{h",
        "nested deeper",
    ),
    ("source: scans", "source: scan", "source: scan", "did you mean 'scans'?"),
    ("public_size: 1000", "public_size: 0", "public_size: 0", "a whole number from 1"),
    ("public_size: 1000", "public_size: 1e3", "1e3", "expected a whole number"),
    ("lead: ", "lead: md5", "lead: md5", "a key's fingerprint, sha256:<64 hex digits>"),
    ("{from: 1, to: 4}", "{from: 4, to: 1}", "local_epochs", "to the same or a larger one"),
    ("{from: 1, to: 4}", "{from: 1}", "{from: 1}", "training.local_epochs.to: the key is missing"),
    ("local_epochs:", "local_epoch:", "local_epoch:", "did you mean 'local_epochs'?"),
    ('"20:00-06:00"', '"25:00-06:00"', '"25:00', "two times of day"),
    ('"20:00-06:00"', '"06:00-06:00"', "hours: ", "two times of day"),
    ("time_zone: UTC", "time_zone: Mars/Base", "Mars/Base", "a time zone that this machine knows"),
    ("time_zone: UTC", "time_zone: ../../etc/passwd", "../..", "a time zone that this machine"),
    ("  time_zone: UTC\n", "", "rounds: 10", "limits: expected time_zone"),
    ("loss: 0.01", "loss: -1", "loss: -1", "a number from 0"),
    ("egress: automatic", "egress: [}", "}", "no YAML"),
    ("egress: automatic", "egress: automatic\n---\na: 1", "---", "no YAML"),
]


@pytest.mark.parametrize(("old", "new", "place", "says"), WRONG, ids=[w[1][:30] for w in WRONG])
def test_what_does_not_hold_is_refused_with_its_place(tmp_path, old, new, place, says):
    assert TEXT.count(old) == 1
    text = TEXT.replace(old, new)
    path = written(tmp_path, text)
    with pytest.raises(PolicyFileError) as caught:
        load_policy(path)
    message = str(caught.value)
    assert says in message
    assert message.isprintable()
    named = int(message.removeprefix(f"{path}:").split(":")[0])
    start = text.find(place, TEXT.index(old))
    start = text.index(place) if start < 0 else start
    assert named == text.count("\n", 0, start) + 1, message


def test_the_place_of_a_value_is_exact(tmp_path):
    text = TEXT.replace("rounds: 10", "rounds: ten")
    path = written(tmp_path, text)
    with pytest.raises(PolicyFileError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(at(path, text, "ten"))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", ":1:1: the file is empty"),
        (b"# nothing\n", ":1:1: the file is empty"),
        (b"- a\n", ":1:1: the file: expected keys and values"),
        (b"a: \xff\n", ":1:1: not UTF-8 text"),
        (b"a: 1\nb: \x07\n", ":2:1: "),
        (b"? [a, b]\n: 1\n", "a key must be a text"),
        (b"[" * 5000, "nested deeper"),
        (b"a: " + b"x" * MAX_BYTES, "larger than"),
        (b"a: " + b"x" * (MAX_BYTES // 2), "larger than"),
    ],
)
def test_what_is_no_policy_at_all(tmp_path, raw, says):
    path = tmp_path / "policy.yaml"
    path.write_bytes(raw)
    with pytest.raises(PolicyFileError) as caught:
        load_policy(path)
    assert says in str(caught.value)


def test_a_file_that_everybody_may_write_holds_nothing(tmp_path):
    path = written(tmp_path, TEXT)
    path.chmod(0o606)
    with pytest.raises(PolicyFileError, match=f"chmod go-w {path}"):
        load_policy(path)


def test_no_file(tmp_path):
    with pytest.raises(PolicyFileError, match="No such file"):
        load_policy(tmp_path / "policy.yaml")
    with pytest.raises(PolicyFileError, match="Is a directory"):
        load_policy(tmp_path)


def test_a_pipe_in_its_place_does_not_hang_the_agent(tmp_path):
    path = tmp_path / "policy.yaml"
    os.mkfifo(path, 0o600)
    with pytest.raises(PolicyFileError, match="no regular file"):
        load_policy(path)


def test_a_key_called_on_is_a_text(tmp_path):
    text = TEXT.replace("by: dpo", "by: off")
    risk = load_policy(written(tmp_path, text)).without_dp
    assert risk is not None
    assert risk.acknowledged_risk.by == "off"
    assert risk.acknowledged_risk.on == "2026-11-21"


def test_differential_privacy_is_required_where_nothing_is_said(tmp_path):
    lines = [line for line in render(POLICY).splitlines() if line != "  dp: required"]
    policy = load_policy(written(tmp_path, "\n".join(lines)))
    assert policy.dp_required
    assert policy.training["lr"] == Range(0.001, 1.0)


def test_the_hour_is_that_of_the_policys_time_zone():
    noon = datetime(2026, 7, 1, 12, 30, tzinfo=UTC).timestamp()
    for zone, minute in (("UTC", 750), ("Europe/Paris", 870), ("Asia/Kolkata", 1080)):
        policy = replace(POLICY, hours=Hours(start=0, end=1, time_zone=zone))
        assert local_minute(policy, noon) == minute
    assert local_minute(POLICY, noon) == 750


def test_a_window_over_midnight():
    night = Hours(start=1200, end=360, time_zone="UTC")
    assert [night.holds(m) for m in (1199, 1200, 1439, 0, 359, 360)] == [
        False, True, True, True, True, False,
    ]  # fmt: skip
    day = Hours(start=480, end=1440, time_zone="UTC")
    assert [day.holds(m) for m in (479, 480, 1439, 0)] == [False, True, True, False]
