"""Without privacy a network that draws for itself repeats bit for bit: (seed, site, round, step)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedfactory.tasks.examples import SiteData
from fedfactory.tasks.learning import Learning, arrays_of
from fedfactory.tasks.objectives import CLASSIFICATION
from fedfactory.tasks.rehearsal import Passes
from fedfactory.tasks.table import load_task
from fedfactory.wire.arrays import write_arrays
from tests.private_descents import mechanism, training


@pytest.fixture
def workload(tmp_path: Path) -> Learning:
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    write_arrays(tmp_path / "base", {k: v.copy() for k, v in arrays_of(network).items()})
    part = load_task("digits").bundled({"model": "mlp"}).take(np.arange(60))
    data = SiteData(train=part, test=part)
    return Learning(network, data, "cpu", CLASSIFICATION, lambda _: Passes(rows=16, threads=1))


def test_one_seed_gives_one_update_whatever_was_drawn_between(
    workload: Learning, tmp_path: Path
) -> None:
    how = training(lr=0.1, local_epochs=3)
    found = []
    for seed in (5, 5, 6):
        torch.rand(seed + len(found))  # another place in torch's own generator
        outcome = workload.train(
            base=tmp_path / "base", out=tmp_path / "u", training=how, seed=seed
        )
        found.append(outcome.update)
    assert found[0] == found[1] != found[2]


def test_private_work_between_changes_nothing(workload: Learning, tmp_path: Path) -> None:
    how = training(lr=0.1)
    first = workload.train(base=tmp_path / "base", out=tmp_path / "u", training=how, seed=1)
    workload.train_privately(
        base=tmp_path / "base", out=tmp_path / "p", training=training(), mechanism=mechanism()
    )
    again = workload.train(base=tmp_path / "base", out=tmp_path / "u", training=how, seed=1)
    assert first.update == again.update
