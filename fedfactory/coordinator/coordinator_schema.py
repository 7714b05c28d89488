"""The types that conf/coordinator.yaml, HOME/coordinator.yaml and overrides are held against."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class CoordinatorSchema:
    """coordinator.yaml."""

    name: str = MISSING
    listen: str = MISSING
    runs_at_once: int = MISSING
    queue: int = MISSING
    max_model_bytes: int = MISSING
    max_rounds: int = MISSING
    max_sites: int = MISSING
    certificate_days: float = MISSING
    strategy_classes: str = MISSING
    start_timeout_s: float = MISSING
