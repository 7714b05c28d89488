"""What a site tells its own agent: Hydra's schema of conf/agent.yaml, and the checked value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.errors import DataError, ValueRangeError
from site_agents.catalogue import check_site_name
from site_agents.policy import Policy

_MISSING: Final = "???"
SOURCES: Final = ("npz", "partition")
DEVICES: Final = ("auto", "cpu", "cuda")


@dataclass
class SiteSchema:
    """Who this is."""

    name: str = _MISSING


@dataclass
class GatewaySchema:
    """Where the coordinator is."""

    address: str = _MISSING


@dataclass
class SharesSchema:
    """How the sites of local mode share one data set."""

    kind: str | None = None
    alpha: float | None = None
    labels_per_site: int | None = None


@dataclass
class DataSchema:
    """The site's own data."""

    source: str = _MISSING
    path: str | None = None
    task: str | None = None
    partition: SharesSchema = field(default_factory=SharesSchema)
    sites: list[str] = field(default_factory=list)
    seed: int = 0


@dataclass
class PolicySchema:
    """What the site allows."""

    tasks: list[str] = field(default_factory=list)
    privacy: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    max_rounds: int = _MISSING  # type: ignore[assignment]
    max_local_epochs: int = _MISSING  # type: ignore[assignment]
    max_model_bytes: int = _MISSING  # type: ignore[assignment]
    min_examples: int = _MISSING  # type: ignore[assignment]


@dataclass
class WorkerSchema:
    """How work runs."""

    executor: str = _MISSING
    threads: int = _MISSING  # type: ignore[assignment]
    device: str = _MISSING
    timeout_s: float = _MISSING  # type: ignore[assignment]


@dataclass
class AgentSchema:
    """The types Hydra holds conf/agent.yaml and its overrides against."""

    site: SiteSchema = field(default_factory=SiteSchema)
    home: str = _MISSING
    gateway: GatewaySchema = field(default_factory=GatewaySchema)
    data: DataSchema = field(default_factory=DataSchema)
    policy: PolicySchema = field(default_factory=PolicySchema)
    worker: WorkerSchema = field(default_factory=WorkerSchema)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """`threads` per worker; `timeout_s` bounds one order, in seconds."""

    executor: str
    threads: int
    device: str
    timeout_s: float

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueRangeError("worker.threads", self.threads, "a whole number from 1")
        if self.device not in DEVICES:
            raise ValueRangeError("worker.device", self.device, f"one of {', '.join(DEVICES)}")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueRangeError("worker.timeout_s", self.timeout_s, "seconds above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """An agent's configuration, every value in range. `data` is read by the worker alone."""

    site: str
    home: Path
    gateway_address: str
    data: Mapping[str, Any]
    policy: Policy
    worker: WorkerConfig


def agent_config(values: Mapping[str, Any]) -> AgentConfig:
    """Check a composed configuration and return it as a value.

    Raises:
        UsageError: a value out of range (names its key), or a data file that is not there.
    """
    data = dict(values["data"])
    if data["source"] not in SOURCES:
        raise ValueRangeError("data.source", data["source"], f"one of {', '.join(SOURCES)}")
    if data["path"] is not None and not Path(data["path"]).is_file():
        raise DataError(f"data.path={data['path']}: there is no such file")
    policy: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values["policy"].items()
    }
    host, _, port = values["gateway"]["address"].rpartition(":")
    if not host or not port.isdigit():
        raise ValueRangeError("gateway.address", values["gateway"]["address"], "host:port")
    return AgentConfig(
        site=check_site_name(values["site"]["name"]),
        home=Path(values["home"]).absolute(),
        gateway_address=values["gateway"]["address"],
        data=data,
        policy=Policy(**policy),
        worker=WorkerConfig(**values["worker"]),
    )
