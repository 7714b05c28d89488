"""`policy explain` of an order that the agent refused: the reason of then, after its deadline."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from site_agents import control
from site_agents.cli.main import main
from tests.sites.rig import OPEN, Coordinator, Site


def kept(site: Site) -> Path:
    (path,) = (site.home / "refused").iterdir()
    return path


def explained(site: Site, path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["policy", "explain", str(path), "--home", str(site.home)])
    return status, capsys.readouterr().out


@pytest.fixture
def refused(make_site: Callable[..., Site], coordinator: Coordinator) -> Site:
    """Too few records, found by a worker; and then the order's deadline passed."""
    site = make_site(without_dp=OPEN)
    site.executor.facts = dataclasses.replace(site.executor.facts, train=9)
    soon = time.time() + 1.5
    assert site.code(coordinator.terms(privacy=None), expires_at=soon) == "too_few_examples"
    time.sleep(max(0.0, soon + 0.1 - time.time()))
    return site


def test_the_true_reason_stays_when_the_deadline_has_passed(
    refused: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "copy.json"
    shutil.copyfile(kept(refused), elsewhere)
    os.utime(elsewhere)
    touched = kept(refused)
    for path in (kept(refused), elsewhere):
        status, out = explained(refused, path, capsys)
        assert status == 1
        first = out.splitlines()[0]
        assert first.startswith("when it came (20")
        assert "too_few_examples: number of records (privacy.min_examples): 9 records" in first
        assert "REFUSED too_few_examples" in out
        assert "expired" not in out
    os.utime(touched)  # somebody copied the home, without the files' times
    assert "expired" not in explained(refused, touched, capsys)[1]


def test_the_json_has_it_too(refused: Site, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["policy", "explain", str(kept(refused)), "--home", str(refused.home), "--json"])
    came = json.loads(capsys.readouterr().out)["when_it_came"]
    assert came["code"] == "too_few_examples"
    assert abs(came["came_at"] - time.time()) < 600


def test_one_that_did_come_late_is_late(
    site: Site, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.code(expires_at=time.time() - 100) == "expired"
    status, out = explained(site, kept(site), capsys)
    assert status == 1
    assert "expired: time to answer (sending.expires_at): it came 100 s after" in out
    assert "REFUSED expired" in out


def test_a_stranger_has_no_entry_and_is_judged_by_the_files_time(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.write_policy(coordinators={})
    soon = time.time() + 3
    assert site.code(expires_at=soon) == "not_authorised"
    time.sleep(max(0.0, soon + 0.1 - time.time()))
    _, out = explained(site, kept(site), capsys)
    assert out.splitlines()[0].endswith("not in the audit chain")
    assert "REFUSED not_authorised" in out
    assert "expired" not in out


def test_one_that_was_done_later_and_whose_result_is_gone(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    control.set(site.home, "paused", by="ana", reason="cooling")
    text = site.delivery()
    assert site.answer(text).refusal.code == "paused"
    control.set(site.home, "running", by="ana", reason="cold")
    assert site.answer(text).refusal is None
    status, out = explained(site, kept(site), capsys)
    assert status == 0
    assert "paused by ana: cooling" in out.splitlines()[0]
    (folder,) = (site.home / "spool" / "jobs").iterdir()
    shutil.rmtree(folder)
    status, out = explained(site, kept(site), capsys)
    assert status == 1
    assert "the work is done, and its kept result was removed" in out
    assert "Errno" not in out
    assert "base model could" not in out
    executions = site.executions()
    assert site.answer(text).refusal.code == "transfer_failed"  # as it says
    assert site.executions() == executions
