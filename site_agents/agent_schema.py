"""The types that conf/agent.yaml, HOME/agent.yaml and overrides are held against. No values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class WorkerSchema:
    """How work runs."""

    executor: str = MISSING
    threads: int = MISSING
    devices: list[str] = MISSING
    timeout_s: float = MISSING
    network: str | None = MISSING


@dataclass
class AgentSchema:
    """agent.yaml."""

    site: str = MISSING
    gateway: str = MISSING
    data: dict[str, Any] = MISSING
    worker: WorkerSchema = MISSING
    ledger: str | None = MISSING
    second_place: str | None = MISSING
    without_second_place: str | None = MISSING
