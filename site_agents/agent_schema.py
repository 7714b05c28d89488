"""The types Hydra holds conf/agent.yaml and its overrides against. Values live in conf/."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class SiteSchema:
    """Who this is."""

    name: str = MISSING


@dataclass
class GatewaySchema:
    """Where the coordinator is."""

    address: str = MISSING


@dataclass
class SharesSchema:
    """How the sites of local mode share one data set."""

    kind: str | None = MISSING
    alpha: float | None = MISSING
    labels_per_site: int | None = MISSING


@dataclass
class DataSchema:
    """The site's own data."""

    source: str = MISSING
    path: str | None = MISSING
    task: str | None = MISSING
    partition: SharesSchema = MISSING
    sites: list[str] = MISSING
    seed: int = MISSING


@dataclass
class PolicySchema:
    """What the site allows."""

    tasks: list[str] = MISSING
    privacy: list[str] = MISSING
    metrics: list[str] = MISSING
    max_rounds: int = MISSING
    max_local_epochs: int = MISSING
    max_model_bytes: int = MISSING
    min_examples: int = MISSING


@dataclass
class WorkerSchema:
    """How work runs."""

    executor: str = MISSING
    threads: int = MISSING
    device: str = MISSING
    timeout_s: float = MISSING


@dataclass
class AgentSchema:
    """conf/agent.yaml."""

    site: SiteSchema = MISSING
    home: str = MISSING
    gateway: GatewaySchema = MISSING
    data: DataSchema = MISSING
    policy: PolicySchema = MISSING
    worker: WorkerSchema = MISSING
