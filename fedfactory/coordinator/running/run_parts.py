"""What a run's process works with: made once by serverapp.py, passed to those who do the work."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from fedfactory.coordinator.anchors import Anchors
from fedfactory.coordinator.run_settings import RunSettings
from fedfactory.coordinator.running.checkpoints import Checkpoints
from fedfactory.coordinator.running.journal import Journal
from fedfactory.coordinator.running.life import Life
from fedfactory.coordinator.running.link import Link, LinkRing, Replied
from fedfactory.coordinator.running.measuring import Measured, Measuring
from fedfactory.coordinator.running.ordering import Orders
from fedfactory.coordinator.running.run_files import RunFiles
from fedfactory.coordinator.running.run_grid import RunGrid

# What wakes the runner. Put in by the link's thread and the measuring one, taken out by the runner.
Happenings = queue.SimpleQueue[LinkRing | Replied | Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """The parts of one run. `connected` are the sites that were here when the process began.

    `measuring` is None where there is no public set.
    """

    grid: RunGrid
    link: Link
    connected: tuple[str, ...]
    journal: Journal
    files: RunFiles
    checkpoints: Checkpoints
    settings: RunSettings
    orders: Orders
    anchors: Anchors
    life: Life
    measuring: Measuring | None
    happenings: Happenings
