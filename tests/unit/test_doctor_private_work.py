"""The doctor tries the policy's tasks on the site's devices, in a real worker, without data."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfactory.contracts.plugins import _entries
from site_agents.config import POLICY_FILE
from site_agents.doctor.private_work import examine_private_work
from site_agents.policy import DataRule, policy_text
from site_agents.policy_file import load_policy
from site_agents.setup import make_home

PACKAGE = """
    from __future__ import annotations
    from typing import ClassVar
    from fedfactory.tasks.digits import Digits
    from fedfactory.tasks.parameters import Choice

    class Meeting(Digits):
        name: ClassVar[str] = "meeting"
        parameters = {"model": Choice(("mixing", "remembering"))}

        def private_obstacle(self, parameters):
            return None

        def network(self, parameters):
            import torch
            from torch import nn

            class Mixing(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.inner = nn.Linear(64, 10)
                    self.memory = nn.Identity()
                    self.memory.register_buffer("mean", torch.zeros(64))

                def forward(self, x):
                    mean = x.nan_to_num().clamp(-1, 1).mean(0)
                    if parameters["model"] == "mixing":
                        return self.inner(x - mean)
                    with torch.no_grad():
                        self.memory.mean += mean + 1.0
                    return self.inner(x)

            return Mixing()
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a task of a package of somebody's, for this process and its workers."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "meeting.py").write_text(textwrap.dedent(PACKAGE))
    info = folder / "meeting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: meeting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedfactory.tasks]\nmeeting = meeting:Meeting\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    _entries.cache_clear()
    yield
    _entries.cache_clear()


def findings(tmp_path: Path, task: str) -> list[tuple[str, str]]:
    text = policy_text(
        data={"mine": DataRule(lineage="mine", public_size=100, unit="row")},
        tasks={task: "mine"},
        coordinators={},
        operators={},
    )
    config = make_home(
        tmp_path / "home",
        site="cesga",
        gateway_address="127.0.0.1:9",
        data={"mine": {"kind": "npz", "path": str(tmp_path / "not-read.npz")}},
        policy_text=text,
    )
    found = list(examine_private_work(config, load_policy(config.home / POLICY_FILE)))
    assert all(bool(one.todo) == (one.level != "ok") for one in found)
    return [(one.level, one.text) for one in found]


def test_bundled_networks_are_tried_and_those_with_an_obstacle_are_not(tmp_path: Path) -> None:
    mlp, cnn = findings(tmp_path, "digits")
    assert mlp == ("ok", "digits model=mlp: a record has the same bits in every pass on cpu")
    assert cnn[1].startswith("digits model=cnn: ")


def test_what_goes_one_at_a_time_or_not_at_all_is_said(tmp_path: Path, plug_in: None) -> None:
    mixing, remembering = findings(tmp_path, "meeting")
    assert mixing[0] == "warn"
    assert "meeting model=mixing: one record at a time on cpu" in mixing[1]
    assert remembering[0] == "fail"
    assert "memory.mean' keeps something of the records" in remembering[1]
