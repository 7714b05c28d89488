"""No record makes private work fail: two data sets that differ in one unit give the same code.

Played through the worker's own path, the look at the form and then the work, for every kind of
source and every task; and no unit's damage moves another unit's examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.privacy import Measurement
from fedfactory.tasks.parameters import Choice, Parameter, WholeNumber
from fedfactory.tasks.table import load_task
from site_agents.data.sources import open_source
from tests.damaged_units import KINDS, Kind, body_of, code_of, written

MEASUREMENT = Measurement(noise_multiplier=1.0, loss_clip=4.0, public_examples=4)
EVALUATION = {"kind": "evaluate", "training": None, "mechanism": None, "measurement": MEASUREMENT}
SLOW = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def is_short(damage: Any) -> bool:
    """Whether arrays come out short of an entry; which one, they do not say."""
    return any(part is ... for row in damage if type(row) is tuple for part in row)


def every_damage(*, short: bool = True) -> list[Any]:
    return [
        pytest.param(name, number, id=f"{name}-{number}")
        for name, kind in KINDS.items()
        for number, damage in enumerate(kind.damages)
        if short or not is_short(damage)
    ]


@pytest.mark.parametrize(("name", "number"), every_damage())
@pytest.mark.rule("25")
def test_whatever_one_unit_holds_is_the_same_work(name: str, number: int, tmp_path: Path) -> None:
    """Every kind of damage that is listed, in place of one unit."""
    kind = KINDS[name]
    body = body_of(kind)
    body[1] = kind.damages[number]
    assert code_of(tmp_path, kind, body) is None


@pytest.mark.parametrize(("name", "number"), every_damage(short=False))
def test_what_one_unit_holds_moves_no_other(name: str, number: int, tmp_path: Path) -> None:
    """The others' examples are the same, bit for bit, and on the same side of the split."""
    kind = KINDS[name]
    sides = []
    for damage in (kind.records(1), kind.damages[number]):
        folder = tmp_path / str(len(sides))
        folder.mkdir()
        body = body_of(kind)
        # At a unit's place there are as many records: what has no unit is known by its number.
        body[1] = damage or ([b""] if name.startswith("csv") else kind.records(1))
        sides.append(_examples(kind, folder, body))
    whole, damaged = sides
    own = _own(kind, tmp_path)
    for side in ("train", "test"):
        assert whole[side] - own <= damaged[side]
        assert len(damaged[side] - whole[side]) <= len(damage or [1]) * 1300


def _examples(kind: Kind, folder: Path, body: Any) -> dict[str, set[bytes]]:
    source = open_source("own", kind.write(folder, body), "people")
    found = source.load_privately(
        load_task(kind.task), written(kind.task), by_unit=kind.unit != "row"
    )
    return {
        side: {x.tobytes() + bytes(str(y), "utf8") for x, y in zip(part.x, part.y, strict=True)}
        for side, part in (("train", found.data.train), ("test", found.data.test))
    }


def _own(kind: Kind, tmp_path: Path) -> set[bytes]:
    """The examples of unit 1 itself."""
    folder = tmp_path / "own"
    folder.mkdir()
    sides = _examples(kind, folder, [kind.records(1)])
    return sides["train"] | sides["test"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("work", ["train", "evaluate"])
@pytest.mark.rule("25")
def test_a_side_without_a_record_sends_noise(name: str, work: str, tmp_path: Path) -> None:
    """None at all, one alone, all of them damaged alike: the work is done."""
    kind = KINDS[name]
    asked = EVALUATION if work == "evaluate" else {}
    spoilt = next(d for d in kind.damages if d)
    for body in ([], body_of(kind)[:1], [spoilt] * 5):
        assert code_of(tmp_path, kind, body, **asked) is None


# ---- parameters ------------------------------------------------------------------------------

TEXTS = {
    "label": ["outcome:0|1", "outcome:1:1", "soon:0|1", "soon:1:1", "gone:0|1"],
    "numeric": ["age:50:20", "age:50:0.00002", "gone:1:1"],
    "categorical": ["sex:f|m", "sex:f|x", ""],
    "sensors": ["heat:70:10", "heat:70:0.00001", "gone:1:1"],
    "order": ["cycle", "gone"],
}
OF_TASK = {
    "digits": ["npz", "images", "python"],
    "breast_cancer": ["npz by unit", "python by unit"],
    "tabular": ["csv", "csv by unit", "parquet"],
    "timeseries": ["csv series", "npz windows"],
}


def values(name: str, parameter: Parameter) -> st.SearchStrategy[Any]:
    if isinstance(parameter, Choice):
        return st.sampled_from(parameter.names)
    if isinstance(parameter, WholeNumber):
        most = min(parameter.high, 16)
        ends = st.sampled_from([parameter.low, parameter.low + 1])
        return (
            ends | st.integers(parameter.low, most)
            if name in ("hidden", "channels")
            else (ends | st.integers(parameter.low, parameter.high))
        )
    return st.sampled_from(TEXTS[name])


@pytest.mark.parametrize("task", OF_TASK)
@settings(SLOW, max_examples=40)
@given(data=st.data())
def test_every_parameter_of_every_task(task: str, data: st.DataObject, tmp_path: Path) -> None:
    """Whatever is asked, a unit that is null and one that is there give one code."""
    kind = KINDS[data.draw(st.sampled_from(OF_TASK[task]))]
    found = load_task(task)
    name = data.draw(st.sampled_from(sorted(found.parameters) or [""]))
    asked = {name: data.draw(values(name, found.parameters[name]))} if name else {}
    parameters = written(task, **asked)
    try:
        found.check(parameters)
    except UsageError:
        return  # refused for its parameters, before anything
    if found.private_obstacle(parameters):
        return
    damage = data.draw(st.sampled_from(kind.damages))
    work = data.draw(st.sampled_from([{}, EVALUATION]))
    body = body_of(kind)
    codes = {code_of(tmp_path, kind, body, parameters=parameters, **work)}
    body[1] = damage
    codes.add(code_of(tmp_path, kind, body, parameters=parameters, **work))
    assert len(codes) == 1
    assert codes <= {None, "no_data"}


# ---- garbage that nobody thought of ----------------------------------------------------------

LINES = st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b""))
CELLS = st.sampled_from(
    [b"p1", b"50", b"f", b"1", b"", b'"', b'""', b'"a', b'a"', b" ", b"nan", b"1e999", b"\xc3"]
)
ROWS = st.lists(CELLS, max_size=6).map(b",".join)


@pytest.mark.parametrize("name", ["csv", "csv by unit", "csv series"])
@settings(SLOW, max_examples=150)
@given(garbage=LINES | ROWS, others=st.lists(LINES | ROWS, max_size=2))
def test_any_line_of_a_table_is_no_others_matter(
    name: str, garbage: bytes, others: list[bytes], tmp_path: Path
) -> None:
    """Also where other lines are garbage: their quotes do not meet."""
    kind = KINDS[name]
    folder = tmp_path / "site"
    folder.mkdir(exist_ok=True)
    sides = []
    for line in (kind.records(1)[0], garbage):
        body = body_of(kind)
        body[1] = [line]
        body[5:5] = [[other] for other in others]
        sides.append(_examples(kind, folder, body))
    for side in ("train", "test"):
        lost = sides[0][side] - sides[1][side]
        # Its own row; of a series, a garbage line may name any unit, and that unit's windows change.
        assert len(lost) <= (1 if name != "csv series" else 3)


VALUES = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-(2**40), 2**40),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=3),
    st.just(np.float32(1)),
    st.just({}),
)


@settings(SLOW, max_examples=150)
@given(record=st.one_of(VALUES, st.tuples(VALUES, VALUES), st.tuples(VALUES, VALUES, VALUES)))
def test_any_object_of_a_sites_own_code_is_no_others_matter(record: object, tmp_path: Path) -> None:
    kind = KINDS["python"]
    folder = tmp_path / "site"
    folder.mkdir(exist_ok=True)
    whole = _examples(kind, folder, body_of(kind))
    body = body_of(kind)
    body[1] = [record]
    damaged = _examples(kind, folder, body)
    for side in ("train", "test"):
        assert len(whole[side] - damaged[side]) <= 1
        assert damaged[side] <= whole[side]
