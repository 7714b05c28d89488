"""What a run's ServerApp works with: made once by serverapp.py, passed to those who do the work."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message

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


class Mail(Protocol):
    """Messages out to nodes and their replies in, as Flower's Grid has them."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids, None for what was not taken."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that are there; each is given once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """The parts of one run. `measuring` is None where there is no public set."""

    post: Mail
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
