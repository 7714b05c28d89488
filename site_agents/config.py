"""What a site tells its own agent: the composed conf/agent.yaml, checked, as one value.

Imports no Hydra: types live in agent_schema.py, defaults in conf/, ranges here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.errors import DataError, UnknownNameError, UsageError, ValueRangeError
from fedfactory.tasks.table import TASKS
from site_agents.catalogue import check_site_name
from site_agents.policy import Policy

SOURCES: Final = ("npz", "partition")
DEVICES: Final = ("auto", "cpu", "cuda")
PRIVACY_MODES: Final = ("none",)
LOWEST: Final[Mapping[str, int]] = {
    "max_rounds": 1,
    "max_local_epochs": 1,
    "max_model_bytes": 1,
    "min_examples": 0,
}
MAX_PORT: Final = 65535


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
        UsageError: an unknown name, a value out of range (names its key), a missing data file.
    """
    site = check_site_name(values["site"]["name"])
    return AgentConfig(
        site=site,
        home=Path(values["home"]).absolute(),
        gateway_address=_address(values["gateway"]["address"]),
        data=_data(dict(values["data"]), site),
        policy=_policy(values["policy"]),
        worker=WorkerConfig(**values["worker"]),
    )


def _address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 1 <= int(port) <= MAX_PORT):
        raise ValueRangeError("gateway.address", address, "host:port")
    return address


def _data(data: dict[str, Any], site: str) -> dict[str, Any]:
    source, path = data["source"], data["path"]
    if source not in SOURCES:
        raise UnknownNameError("data.source", source, SOURCES)
    if source == "npz" and path is None:
        raise UsageError("data.source=npz needs data.path=FILE, an NPZ file with x and y")
    if path is not None and not Path(path).is_file():
        raise DataError(f"data.path={path}: there is no such file")
    # Without the task whose form the data has, nobody could count it before an order is judged.
    _check_names("data.task", [data["task"]], TASKS.names())
    if source == "partition" and site not in data["sites"]:
        raise ValueRangeError("data.sites", data["sites"], f"a list that holds this site, {site}")
    return data


def _policy(values: Mapping[str, Any]) -> Policy:
    for key, low in LOWEST.items():
        if values[key] < low:
            raise ValueRangeError(f"policy.{key}", values[key], f"a whole number from {low}")
    _check_names("policy.tasks", values["tasks"], TASKS.names())
    _check_names("policy.privacy", values["privacy"], PRIVACY_MODES)
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Policy(**fields)


def _check_names(key: str, found: list[Any], known: list[str] | tuple[str, ...]) -> None:
    for name in found:
        if name not in known:
            raise UnknownNameError(key, str(name), known)
