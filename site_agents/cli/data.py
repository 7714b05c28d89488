"""`site-agent data`: check a data source of the site, or generate a table to try a task with."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, tell
from fedfactory.contracts.errors import UnknownNameError, UsageError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.parameters import WholeNumber
from fedfactory.tasks.task import Task
from site_agents.cli.approvals import columns
from site_agents.cli.home import add_home, find_home
from site_agents.config import POLICY_FILE, load_agent_config
from site_agents.data.examination import Fit, Part
from site_agents.data.profile import ColumnProfile
from site_agents.policy import DataRule, TaskRule
from site_agents.task_values import first_values, written_values

PREFIX: Final = "task."
SETTINGS: Final = "The task's parameters are given as in a run: task.KEY=VALUE ..."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What a check found; its fields are those of the JSON."""

    name: str
    lineage: str
    fingerprint: str
    change: str
    says: str
    records: int
    columns: tuple[ColumnProfile, ...]
    tasks: tuple[Fit, ...]
    public_size: int | None
    unit: str | None
    notes: tuple[str, ...]


def main(words: Sequence[str]) -> int:
    """Check or generate; return 0, or 1 if the data do not fit a task or the policy."""
    parser = Arguments(
        prog="site-agent data", description="The site's own data sources; see docs/data.md."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="check | generate")
    check = actions.add_parser(
        "check",
        help="read a source, say what it holds and whether it fits a task",
        description="Read a source as a worker would. Exit code 0: it fits; 1: it does not.",
        epilog=SETTINGS,
    )
    add_home(check)
    check.add_argument("name", metavar="NAME", help="the source's name in agent.yaml")
    check.add_argument("--task", help="hold it against this task (default: the policy's for it)")
    add_forms(check)
    make = actions.add_parser(
        "generate",
        help="write a table of generated rows for tabular or timeseries",
        description="Write a table of generated rows, to try a task with.",
        epilog=SETTINGS,
    )
    make.add_argument("task", choices=("tabular", "timeseries"))
    make.add_argument("file", type=Path, metavar="FILE", help="a new .csv or .parquet file")
    make.add_argument("--count", type=int, default=1000, help="rows, or machines (default 1000)")
    make.add_argument("--seed", type=int, default=1, help="other seed, other rows (default 1)")
    add_forms(make)
    # Argparse takes no positional words on both sides of an option.
    settings = [word for word in words if word.startswith(PREFIX) and "=" in word]
    asked = parser.parse_args([word for word in words if word not in settings])
    act = _check if asked.action == "check" else _generate
    return act(asked, settings)


def _check(asked: Namespace, settings: Sequence[str]) -> int:
    from site_agents.data.versions import write_version
    from site_agents.executors.inspecting import inspect
    from site_agents.inspection import Under
    from site_agents.policy_file import load_policy

    home = find_home(asked.home)
    config, policy = load_agent_config(home, []), load_policy(home / POLICY_FILE)
    if asked.name not in config.data:
        raise UnknownNameError("data source", asked.name, config.data)
    tasks = _tasks(asked, settings, policy.tasks)
    rule = policy.data.get(asked.name)
    lineage = rule.lineage if rule else asked.name
    under = Under(
        tasks={name: _task(name, settings, pinned)[1] for name, pinned in tasks.items()},
        unit=rule.unit if rule else "row",
        private=policy.dp_required,
    )
    found = inspect(config, asked.name, lineage, under=under, overlaps=rule is not None)
    assert found.content is not None
    profile, fits = found.content.profile, found.content.fits
    checked = _Checked(
        name=asked.name,
        lineage=lineage,
        fingerprint=found.version.fingerprint,
        change=found.change.kind,
        says=found.change.sentence,
        records=profile.records,
        columns=profile.columns,
        tasks=fits,
        public_size=rule.public_size if rule else None,
        unit=rule.unit if rule else None,
        notes=(*_notes(rule, fits), *(found.overlaps or ())),
    )
    wrong = [*checked.notes, *(f"{fit.task}: {fit.problem}" for fit in fits if fit.problem)]
    tell(asked, asdict(checked), ids=wrong, words=_lines(checked))
    write_version(home, asked.name, found.version)
    return int(bool(wrong))


def _tasks(
    asked: Namespace, settings: Sequence[str], rules: Mapping[str, TaskRule]
) -> dict[str, Mapping[str, Scalar]]:
    """Return the tasks to hold a source against, each with the values that the policy pins."""
    names = [asked.task] if asked.task else [n for n, r in rules.items() if r.source == asked.name]
    if settings and len(names) != 1:
        raise UsageError(f"'{settings[0]}': of which task? say --task TASK")
    return {name: first_values(rules[name]) if name in rules else {} for name in names}


def _task(
    name: str, settings: Sequence[str], pinned: Mapping[str, Scalar]
) -> tuple[Task, Mapping[str, Scalar]]:
    """Return a task and its parameters: conf's values, then the policy's, then those given."""
    from fedfactory.tasks.table import check_task, load_task

    task = load_task(name)
    values = {**written_values(task), **pinned, **dict(_setting(task, w) for w in settings)}
    return check_task(name, values), values


def _setting(task: Task, word: str) -> tuple[str, Scalar]:
    key, _, text = word.partition("=")
    name = key.removeprefix(PREFIX)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # quoted, as a run's may be
        text = text[1:-1]
    is_number = isinstance(task.parameters.get(name), WholeNumber) and text.isdecimal()
    return name, int(text) if is_number else text


def _notes(rule: DataRule | None, fits: Sequence[Fit]) -> list[str]:
    """Say what in the policy does not go with the data."""
    if rule is None:
        return ["policy.yaml says nothing of this source: no order can use it"]
    notes = []
    for fit in (fit for fit in fits if fit.train and fit.test):
        if fit.by_unit != (rule.unit != "row"):
            read = "in units" if fit.by_unit else "row by row"
            notes.append(
                f"policy.yaml's unit is {rule.unit}, and the data are read {read} by agent.yaml:"
                " set unit in both"
            )
            break
    return notes


def _lines(found: _Checked) -> list[str]:
    rows = [("COLUMN", "TYPE", "MISSING")]
    rows += [(c.name, c.form, "-" if c.missing is None else str(c.missing)) for c in found.columns]
    size = f"policy.yaml: public_size {found.public_size}, unit {found.unit}"
    return [
        f"data '{found.name}', lineage '{found.lineage}': {found.records} records",
        f"version {found.fingerprint}",
        found.says,
        "",
        *columns(rows),
        *(line for fit in found.tasks for line in ("", *_fit(fit))),
        *(["", size] if found.unit else []),
        *(line for note in found.notes for line in ("", note)),
    ]


def _fit(fit: Fit) -> list[str]:
    lines = [f"fits task '{fit.task}'"]
    if fit.problem is not None:
        lines = [f"does not fit task '{fit.task}': {fit.problem}", f"task '{fit.task}' wants"]
        lines += [f"  {line}" for line in fit.wants]
    elif fit.nulls:
        lines.append("under differential privacy these records would count as null:")
        lines += [f"  {line}" for line in fit.nulls]
    for name, part in (("train", fit.train), ("test", fit.test)):
        if part is not None:
            lines.append(f"  {name}: {_counted(part, by_unit=fit.by_unit)}")
    return lines


def _counted(part: Part, *, by_unit: bool) -> str:
    units = f" of {part.units} units" if by_unit else ""
    classes = part.classes or {}
    balance = ", ".join(f"{name} {count}" for name, count in list(classes.items())[:20])
    more = f", ... ({len(classes)} classes)" if len(classes) > 20 else ""
    return f"{part.examples} examples{units}" + (f": {balance}{more}" if balance else "")


def _generate(asked: Namespace, settings: Sequence[str]) -> int:
    from site_agents.data.generation import generate, write_table

    if asked.count < 1:
        raise UsageError(f"--count {asked.count}: expected a number from 1")
    _, parameters = _task(asked.task, settings, {})
    table = generate(asked.task, parameters, asked.count, asked.seed)
    write_table(table, asked.file)
    unit = "; its unit is the column machine" if asked.task == "timeseries" else ""
    told = f"{asked.file}: {table.num_rows} generated rows for task '{asked.task}'{unit}"
    about = {"file": str(asked.file), "rows": table.num_rows, "task": asked.task}
    return tell(asked, about, ids=[asked.file], words=[told])
