"""What a site tells its own agent: conf/agent.yaml, HOME/agent.yaml and overrides, as one value.

The three are merged in that order by OmegaConf; types live in agent_schema.py, ranges here. What
the options of a data source mean is decided where it is opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.errors import UnknownNameError, UsageError, ValueRangeError
from fedfactory.isolation.mechanism import NETWORKS, Network
from site_agents.catalogue import check_site_name
from site_agents.second_place import SYSLOG
from site_agents.trusted_file import write_fault

AGENT_FILE: Final = "agent.yaml"
POLICY_FILE: Final = "policy.yaml"
MAX_PORT: Final = 65535
MAX_THREADS: Final = 1024
_DEVICE: Final = re.compile(r"auto|cpu|cuda:[0-9]{1,3}")
_FORMS: Final = {
    "str": "a text",
    "str | None": "a text, or null",
    "int": "a whole number",
    "float": "a number",
    "list[str]": "a list, as in [cpu]",
    "dict[str, Any]": "names, each with its options",
    "WorkerSchema": "keys of its own, as in threads: 4",
}
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """`threads` per worker; a worker for each of `devices`; `timeout_s` bounds one order.

    `network` as in fedfactory/isolation/mechanism.py.
    """

    executor: str
    threads: int
    devices: tuple[str, ...]
    timeout_s: float
    network: Network | None

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise ValueRangeError(
                "worker.threads", self.threads, f"a whole number from 1 to {MAX_THREADS}"
            )
        _check_devices(self.devices)
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueRangeError("worker.timeout_s", self.timeout_s, "seconds above 0")
        if self.network not in (None, *NETWORKS):
            raise ValueRangeError(
                "worker.network", self.network, f"{' or '.join(NETWORKS)}, or null"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """An agent's configuration, every value in range.

    `data` maps the name of a source to its options, which the worker alone reads. `ledger` is the
    folder of the privacy ledger, on a local disk; `second_place` as in second_place.py,
    `without_second_place` the administrator's reason why there is none.
    """

    site: str
    home: Path
    gateway_address: str
    data: Mapping[str, Mapping[str, Any]]
    worker: WorkerConfig
    ledger: Path
    second_place: Path | None
    without_second_place: str | None


def load_agent_config(home: Path, overrides: Sequence[str]) -> AgentConfig:
    """Return the configuration of the agent at `home`; overrides are key=value.

    Raises:
        UsageError: no agent.yaml, or one that is no YAML; an unknown key, a missing or wrong
            value. Names the file or the override, and the key.
    """
    path = home / AGENT_FILE
    merged = _merge(path, overrides)
    return agent_config(merged, home.absolute())


def agent_config(values: Mapping[str, Any], home: Path) -> AgentConfig:
    """Check the plain values of an agent.yaml and return them as one value.

    Raises:
        UsageError: an unknown name, a value out of range (names its key).
    """
    second, ledger, worker = values["second_place"], values["ledger"], values["worker"]
    if ledger is not None and not Path(ledger).is_absolute():
        raise ValueRangeError("ledger", ledger, "an absolute path, or null")
    if second not in (None, str(SYSLOG)) and not Path(second).is_absolute():
        raise ValueRangeError("second_place", second, f"an absolute path, {SYSLOG}, or null")
    why_none = values["without_second_place"]
    if why_none is not None and (second is not None or not why_none.strip()):
        raise ValueRangeError(
            "without_second_place",
            ascii(why_none),
            "a sentence that says why, where second_place is null; else null",
        )
    return AgentConfig(
        site=check_site_name(values["site"]),
        home=home,
        gateway_address=_address(values["gateway"]),
        data={name: _source(name, options) for name, options in values["data"].items()},
        worker=WorkerConfig(**{**worker, "devices": tuple(worker["devices"])}),
        ledger=home if ledger is None else Path(ledger),
        second_place=None if second is None else Path(second),
        without_second_place=why_none,
    )


def _merge(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from site_agents.agent_schema import AgentSchema

    defaults = (files("fedfactory.conf") / AGENT_FILE).read_text(encoding="utf-8")
    config = OmegaConf.merge(OmegaConf.structured(AgentSchema), OmegaConf.create(defaults))
    try:
        own = OmegaConf.create(_read(path) or "{}")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UsageError(f"{path}: line {line} is no YAML: {error.problem}") from error
    if not OmegaConf.is_dict(own):
        raise UsageError(f"{path}: expected keys and values, as in site: cesga")
    for where, later in ((str(path), own), *((f"'{word}'", _override(word)) for word in overrides)):
        try:
            config = OmegaConf.merge(config, later)
            OmegaConf.resolve(config)
        except OmegaConfBaseException as error:
            raise _diagnosis(where, later, error) from error
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UsageError(f"{path}: {', '.join(missing)}: no value and no default")
    values: Any = OmegaConf.to_container(config)
    return dict(values)


def _read(path: Path) -> str:
    try:
        if fault := write_fault(path):
            raise UsageError(f"{path} is not this site's alone: {fault}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(
            f"{path} cannot be read ({reason}): `site-agent init` makes a site's home"
        ) from error


def _override(word: str) -> Any:
    import yaml
    from omegaconf import OmegaConf

    key, equals, _ = word.partition("=")
    if not equals or not key:
        raise UsageError(f"'{word}': expected key=value, as in worker.threads=4")
    try:
        return OmegaConf.from_dotlist([word])
    except yaml.YAMLError as error:
        raise UsageError(f"'{word}': the value is no YAML; quote special characters") from error


def _diagnosis(where: str, later: Any, error: Exception) -> UsageError:
    """Say in our words what OmegaConf found in the file or override `where`."""
    known = _known_keys()
    given = [str(key) for key in later]
    if isinstance(later.get("worker"), Mapping):
        given += [f"worker.{key}" for key in later["worker"]]
    for key in given:
        if key not in known:
            return UnknownNameError(f"key in {where}:", key, known)
    # OmegaConf names every key but one: a value where the keys of `worker` belong.
    found = str(getattr(error, "full_key", None) or "worker").partition("[")[0]
    return UsageError(f"{where}: {found}: expected {known.get(found, 'another value')}")


def _known_keys() -> dict[str, str]:
    """Return every key of agent.yaml, dotted, with the form of its value."""
    from site_agents.agent_schema import AgentSchema, WorkerSchema

    own = {field.name: _FORMS[str(field.type)] for field in fields(AgentSchema)}
    inner = {f"worker.{field.name}": _FORMS[str(field.type)] for field in fields(WorkerSchema)}
    return own | inner


def _address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 1 <= int(port) <= MAX_PORT):
        raise ValueRangeError("gateway", address, "host:port")
    return address


def _source(name: str, options: Any) -> Mapping[str, Any]:
    if not _NAME.fullmatch(name):
        raise ValueRangeError("data", name, "names of lower-case letters, digits, - and _")
    if not isinstance(options, Mapping) or not isinstance(options.get("kind"), str):
        raise UsageError(f"data.{name}: expected a mapping with a kind, as in kind: csv")
    return options


def _check_devices(devices: tuple[str, ...]) -> None:
    for device in devices:
        if not _DEVICE.fullmatch(device):
            raise ValueRangeError("worker.devices", device, "auto, cpu, or cuda:0, cuda:1, ...")
    if len(set(devices)) != len(devices) or not devices or ("auto" in devices and devices[1:]):
        raise ValueRangeError(
            "worker.devices", list(devices), "[auto] alone, or a list that names each device once"
        )
