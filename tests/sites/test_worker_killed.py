"""kill -9 of a real worker at its lines between a job begun and its result written.

The worker trains by DP-SGD; deaths/sitecustomize.py kills it. Every execution that was begun is
charged, one that follows works, and what the site sends is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedfactory.contracts.plans import RunTerms
from fedfactory.contracts.updates import Reply
from fedfactory.tasks.table import load_task
from fedfactory.wire.arrays import file_ref, read_arrays
from site_agents.assembly import build_executor
from site_agents.config import load_agent_config
from tests.sites.rig import PRIVACY, Coordinator, Site, changed

ROUNDS = 1000
ROWS = 300
STEPS = 16
NEVER = 10**9


class Killed:
    """A site with a real worker, and who kills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "deaths"
        shutil.copytree(Path(__file__).with_name("deaths"), self.folder)
        (self.folder / "deaths").touch()
        (self.folder / "begun").touch()
        chance = np.random.default_rng(1)
        x, y = chance.random((ROWS, 64), np.float32), chance.integers(0, 10, ROWS)
        np.savez(folder / "cohort.npz", x=x, y=y)
        coordinator = Coordinator()
        self.site = Site(
            folder, coordinator,
            rounds=ROUNDS, epsilon_per_run=1000.0, epsilon_per_lineage=1000.0, max_model_bytes=10**7,
        )  # fmt: skip
        self.site.base = load_task("digits").write_initial(
            {"model": "mlp"}, 1, folder / "base.safetensors"
        )
        self.model = read_arrays(folder / "base.safetensors")
        self.terms: RunTerms = changed(
            coordinator.terms(
                rounds=ROUNDS,
                evaluate=False,
                max_model_bytes=10**7,
                max_update_norm_l2=None,
                initial=self.site.base,
            ),
            privacy=changed(PRIVACY, target_epsilon=None, noise_multiplier=50.0),
        )
        self.site.close()
        self.site.executor = build_executor(load_agent_config(self.site.home, []))
        self.site.open()
        self.round = 0

    def ask(self, *deaths: int, again: bool = False) -> Reply:
        """Ask for the next round, or for this one again; the jobs die as asked."""
        self.round += not again
        (self.folder / "deaths").write_text("".join(f"{line}\n" for line in deaths))
        return self.site.ask(self.terms, round=self.round)

    @property
    def begun(self) -> int:
        return len((self.folder / "begun").read_text().splitlines())

    @property
    def lines(self) -> int:
        return int((self.folder / "lines").read_text())

    def hold_to_account(self, reply: Reply) -> None:
        """Hold what was charged against what was begun, and what was sent against the plan."""
        assert self.site.steps_spent() == STEPS * self.begun
        if reply.update is None:
            return
        blob = reply.update.payload.blob
        sent = self.site.received / blob.digest.removeprefix("sha256:")
        assert file_ref(sent) == blob
        update = read_arrays(sent)
        assert {n: a.shape for n, a in update.items()} == {
            n: a.shape for n, a in self.model.items()
        }
        assert all(np.isfinite(array).all() and array.any() for array in update.values())


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Killed]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder / "deaths"), prepend=os.pathsep)
    killed = Killed(folder)
    yield killed
    killed.site.executor.close()
    killed.site.close()


def _lines(killed: Killed) -> int:
    """How many lines a job runs whose data and model are in memory already."""
    killed.ask()
    killed.hold_to_account(killed.ask(NEVER))
    assert killed.lines > 200
    return killed.lines


def _walk(killed: Killed, deaths: int) -> None:
    lines = _lines(killed)
    for line in np.linspace(1, lines, deaths).astype(int):
        begun = killed.begun
        reply = killed.ask(int(line))
        assert reply.update is not None, line
        assert killed.begun == begun + 2, line
        killed.hold_to_account(reply)


def test_a_worker_killed_in_its_job(killed: Killed) -> None:
    _walk(killed, deaths=2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_worker_killed_at_each_of_its_lines(killed: Killed) -> None:
    _walk(killed, deaths=100)


def test_a_second_death_is_a_failure_by_code_and_the_next_order_is_done(killed: Killed) -> None:
    line = _lines(killed)
    begun = killed.begun
    reply = killed.ask(line, line)
    assert reply.refusal.code == "work_failed"
    assert killed.begun == begun + 2
    killed.hold_to_account(reply)
    killed.site.restart()
    reply = killed.ask(again=True)
    assert reply.update is not None
    killed.hold_to_account(reply)
