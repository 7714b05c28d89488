"""What a run's ServerApp works with: made once by serverapp.py, passed to those who do the work."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedfactory.coordinator.anchors import Anchors
from fedfactory.coordinator.run_settings import RunSettings
from fedfactory.coordinator.running.checkpoints import Checkpoints
from fedfactory.coordinator.running.journal import Journal
from fedfactory.coordinator.running.life import Life
from fedfactory.coordinator.running.link import Link, LinkRing
from fedfactory.coordinator.running.measuring import Measured, Measuring
from fedfactory.coordinator.running.ordering import Orders
from fedfactory.coordinator.running.run_files import RunFiles

# What wakes the runner. Put in by the link's thread and the measuring one, taken out by the runner.
Happenings = queue.SimpleQueue[LinkRing | Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """The parts of one run. `measuring` is None where there is no public set."""

    grid: Grid
    link: Link
    journal: Journal
    files: RunFiles
    checkpoints: Checkpoints
    settings: RunSettings
    orders: Orders
    anchors: Anchors
    life: Life
    measuring: Measuring | None
    happenings: Happenings
