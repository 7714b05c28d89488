"""What the listings of a machine's own commands say about it: text in, facts out.

Decides what may be concluded from `sinfo --version`, `scontrol show node`, `scontrol show
partition` (Slurm 22.05 and later) and `nvidia-smi`; running them and writing a patch are left to
others. What a listing does not plainly say stays unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from fedfactory.contracts.errors import EnvironmentFailedError
from site_agents.catalogue import FactValue

Value = TypeVar("Value")
Command = tuple[str, ...]

SLURM_VERSION: Final[Command] = ("sinfo", "--version")
NODES: Final[Command] = ("scontrol", "--oneliner", "show", "node")
PARTITIONS: Final[Command] = ("scontrol", "--oneliner", "show", "partition")
NVIDIA: Final[Command] = (
    "nvidia-smi",
    "--query-gpu=name,memory.total",
    "--format=csv,noheader,nounits",
)
COMMANDS: Final = (SLURM_VERSION, NODES, PARTITIONS, NVIDIA)
UNTYPED: Final = "gpu"  # Gres=gpu:4 tells how many, not which
_FIELD: Final = re.compile(r"(?:^|\s)([A-Za-z]+)=(\S*)")
_DURATION: Final = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):\d\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A fact as seen on the machine. `source`: the command that told it."""

    value: FactValue
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A node with GPUs. `gpus`: how many of each kind; `cores`: those that jobs may use."""

    gpus: Mapping[str, int]
    architecture: str | None
    cores: int | None
    partitions: tuple[str, ...]


def facts_seen(
    listings: Mapping[Command, str], *, architecture: str, in_job: bool
) -> dict[str, Seen]:
    """Return what was seen, by the name of the fact.

    Args:
        listings: what each of COMMANDS printed; those that could not run are left out.
        architecture: of the node that the probe runs on, as `uname -m` gives it.
        in_job: whether that node belongs to a job, and is no login node.

    Raises:
        EnvironmentFailedError: a listing has not the form that this code knows.
    """
    seen: dict[str, Seen] = {}
    if not in_job:
        seen["login_cpu_architecture"] = Seen(value=architecture, source="uname -m")
    if version := listings.get(SLURM_VERSION):
        source = " ".join(SLURM_VERSION)
        seen["scheduler"] = Seen(value="slurm", source=source)
        seen["scheduler_version"] = Seen(value=version.split()[-1], source=source)
    nodes = _gpu_nodes(listings.get(NODES, ""))
    if nodes:
        source = " ".join(NODES)
        seen |= {k: Seen(value=v, source=source) for k, v in _of_nodes(nodes).items()}
        of_gpus = {partition for node in nodes for partition in node.partitions}
        if limits := _limits(listings.get(PARTITIONS, ""), of_gpus):
            source = " ".join(PARTITIONS)
            seen["gpu_partitions_max_minutes"] = Seen(value=limits, source=source)
    if gpus := listings.get(NVIDIA):
        seen["stack"] = Seen(value="cuda", source="nvidia-smi")
        if len({kind for node in nodes for kind in node.gpus}) < 2:  # else one node is not all
            seen |= {k: Seen(value=v, source="nvidia-smi") for k, v in _of_gpus(gpus).items()}
    return seen


def minutes(duration: str) -> int | None:
    """Return the whole minutes of a time that Slurm lists; None for UNLIMITED.

    An unlimited partition says nothing: the limit that counts is then the QoS's or the account's.

    Raises:
        EnvironmentFailedError: it is no time.
    """
    if duration == "UNLIMITED":
        return None
    if not (found := _DURATION.fullmatch(duration)):
        where = " ".join(PARTITIONS)
        raise EnvironmentFailedError(
            f"{where}: MaxTime={duration}: expected [days-]hours:minutes:seconds or UNLIMITED"
        )
    days, hours, rest = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + rest


def gpus_of(gres: str) -> dict[str, int]:
    """Return how many GPUs of each kind a node has, from its Gres field as Slurm lists it.

    >>> gpus_of("craynetwork:4,gpu:a100:4(S:0,3)"), gpus_of("gpu:8"), gpus_of("(null)")
    ({'a100': 4}, {'gpu': 8}, {})
    """
    found: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, _, rest = entry.partition(":")
        kind, _, count = rest.rpartition(":")
        if name != UNTYPED or not rest:
            continue
        if not count.isdecimal():
            where = " ".join(NODES)
            raise EnvironmentFailedError(f"{where}: Gres={gres}: expected gpu[:kind]:number")
        found[kind or UNTYPED] = found.get(kind or UNTYPED, 0) + int(count)
    return found


def _gpu_nodes(listing: str) -> list[_Node]:
    nodes = []
    for fields in _records(listing):
        if gpus := gpus_of(fields.get("Gres", "")):
            usable, threads = fields.get("CPUEfctv"), int(fields.get("ThreadsPerCore", 1))
            nodes.append(
                _Node(
                    gpus=gpus,
                    architecture=fields.get("Arch"),  # absent until the node has registered
                    cores=int(usable) // threads if usable else None,
                    partitions=tuple(fields.get("Partitions", "").split(",")),
                )
            )
    return nodes


def _of_nodes(nodes: Sequence[_Node]) -> dict[str, FactValue]:
    kinds = sorted({kind for node in nodes for kind in node.gpus})
    holders = {kind: [node for node in nodes if kind in node.gpus] for kind in kinds}
    totals = {kind: sum(node.gpus[kind] for node in holders[kind]) for kind in kinds}
    counts: dict[str, set[int | None]] = {k: {n.gpus[k] for n in holders[k]} for k in kinds}
    cores: dict[str, set[int | None]] = {k: {n.cores for n in holders[k]} for k in kinds}
    facts: dict[str, FactValue] = {
        "nodes": _by_kind({kind: len(holders[kind]) for kind in kinds}),
        "gpus_total": sum(totals.values()),
        "gpus_per_node": _if_one_each(counts),
        "usable_cpus_per_node": _if_one_each(cores),
        "gpu_model": None if UNTYPED in kinds else " and ".join(kinds),
        "cpu_architecture": _architecture([holders[kind] for kind in kinds]),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _architecture(kinds: Sequence[Sequence[_Node]]) -> str | None:
    """Return the architecture if nodes of every kind tell it, and all the same."""
    told = [{node.architecture for node in nodes} - {None} for nodes in kinds]
    return _only(set().union(*told)) if all(told) else None


def _limits(listing: str, wanted: set[str]) -> dict[str, int | None]:
    listed = {fields["PartitionName"]: fields for fields in _records(listing)}
    return {name: minutes(f["MaxTime"]) for name, f in listed.items() if name in wanted}


def _of_gpus(listing: str) -> dict[str, FactValue]:
    rows = [line.rpartition(",") for line in listing.strip().splitlines()]
    models = {model.strip() for model, _, _ in rows}
    facts: dict[str, FactValue] = {"gpu_model": _only(models)}
    if all(mebibytes.strip().isdecimal() for _, _, mebibytes in rows):  # "[N/A]" on a GH200
        facts["gpu_memory_gb"] = _only({round(int(mebibytes) / 1024) for _, _, mebibytes in rows})
    return {key: value for key, value in facts.items() if value is not None}


def _records(listing: str) -> list[dict[str, str]]:
    """Return the fields of each line; of a value with blanks (OS=...) the first word."""
    lines = filter(None, map(str.strip, listing.splitlines()))
    return [dict(reversed(_FIELD.findall(line))) for line in lines]  # a name's first field counts


def _by_kind(numbers: Mapping[str, int]) -> FactValue:
    return next(iter(numbers.values())) if len(numbers) == 1 else numbers


def _if_one_each(found: Mapping[str, set[int | None]]) -> FactValue:
    """Return the number, by kind if there are several kinds; None if nodes of a kind differ."""
    numbers = {kind: _only(values) for kind, values in found.items()}
    if any(number is None for number in numbers.values()):
        return None
    return _by_kind({kind: number for kind, number in numbers.items() if number is not None})


def _only(values: set[Value]) -> Value | None:
    return next(iter(values)) if len(values) == 1 else None
