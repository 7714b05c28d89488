"""Records that count as null: who is told of them, how many, and never what they hold."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.table import load_task
from site_agents.cli.main import main
from site_agents.config import load_agent_config
from site_agents.data.cells import moments, named, numbers
from site_agents.data.csv_file import Csv
from site_agents.data.csv_lines import MAX_LINE
from site_agents.data.sources import open_source
from site_agents.doctor.house import examine_policy
from site_agents.doctor.records import examine_records
from site_agents.policy import AcknowledgedRisk, DataRule, OneOf, TaskRule, WithoutDp, policy_text
from site_agents.setup import make_home

TABULAR = {
    "kind": "classification",
    "label": "outcome:0|1",
    "numeric": "age:50:20",
    "categorical": "sex:f|m",
    "model": "linear",
    "hidden": 1,
}
SERIES = {"label": "soon:0|1", "sensors": "heat:70:10", "order": "cycle", "window": 8, "stride": 4}
VALUE = "77123"
ROWS = [f"{20 + i},{'fm'[i % 2]},{i % 2}" for i in range(60)]
BAD = [
    f"{VALUE}000000,f,1",
    "1e999,f,1",
    f"x{VALUE},f,1",
    f"50,{VALUE},1",
    "50,f,7",
    "50",
    '50,f,"1',
]
OPEN = WithoutDp(
    acknowledged_risk=AcknowledgedRisk(by="ada", on="2026-11-21", reason="generated data"),
    min_examples=1,
    min_local_steps=1,
)


def home(tmp_path: Path, lines: list[str], **changed: Any) -> str:
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["age,sex,outcome", *lines]) + "\n")
    fixed = {n: OneOf((TABULAR[n],)) for n in ("label", "numeric", "categorical")}
    values: dict[str, Any] = {
        "coordinators": {},
        "operators": {},
        "data": {"own": DataRule(lineage="people", public_size=60, unit="row")},
        "tasks": {"tabular": TaskRule(source="own", parameters=fixed)},
    }
    make_home(
        tmp_path / "home",
        site="cesga",
        gateway_address="localhost:1",
        data={"own": {"kind": "csv", "path": str(path)}},
        policy_text=policy_text(**{**values, **changed}),
    )
    return str(tmp_path / "home")


def check(at: str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["data", "check", "own", "--home", at, *words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


COUNTS = (
    "column 'age': 1 of 65 values are no numbers",
    "column 'age': 1 of 65 values are not finite",
    "column 'sex': 1 of 65 values are none of 'sex'",
    "column 'outcome': 1 of 65 values are none of 'outcome'",
    "column 'age' is outside -2e+07 to 2e+07 in 1 of 61 examples",
    "1 of 67 rows have another number of cells than the header; row 66 after the header has 1",
    "1 of 67 rows open a quote that does not end in them; row 67 after the header",
)


def test_data_check_fails_on_them_with_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = home(tmp_path, [*ROWS, *BAD])
    code, shown = check(at, capsys)
    assert code == 1
    assert "records that count as null under differential privacy" in shown
    for sentence in COUNTS:
        assert sentence in shown
    assert VALUE not in shown
    found = json.loads(check(at, capsys, "--json")[1])
    [fit] = found["tasks"]
    assert found["records"] == 67
    assert fit["train"]["examples"] + fit["test"]["examples"] == 60
    assert len(fit["nulls"]) == len(COUNTS)


def test_data_check_finds_nothing_wrong_with_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(home(tmp_path, ROWS), capsys)[0] == 0


def test_the_doctor_fails_on_them_with_counts(tmp_path: Path) -> None:
    for name, lines, level in (("good", ROWS, "ok"), ("bad", [*ROWS, *BAD], "fail")):
        (tmp_path / name).mkdir()
        config = load_agent_config(Path(home(tmp_path / name, lines)), [])
        policy, _ = examine_policy(config)
        [found] = examine_records(config, policy)
        assert (found.level, found.area) == (level, "records")
        assert VALUE not in found.text
        if level == "fail":
            assert all(sentence in found.text for sentence in COUNTS)
            assert found.todo == "site-agent data check own --task tabular tells more"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "0 examples to train on and 0 to test on"),
        (ROWS[:1], "to test on"),
        ([*ROWS, ""], None),  # an empty line is nobody's
    ],
)
def test_a_side_without_records_is_told_to_the_administrator(
    lines: list[str], said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = check(home(tmp_path, lines), capsys)
    assert code == int(said is not None)
    assert said is None or said in shown


def test_without_privacy_the_first_of_them_is_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = check(home(tmp_path, [*ROWS, *BAD], without_dp=OPEN), capsys)
    assert code == 1
    assert "does not fit task 'tabular'" in shown
    assert "records that count as null" not in shown


def test_units_that_are_too_short_for_a_window_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    lines = [f"m{m},70,{t},0" for m in range(20) for t in range(3 if m < 4 else 12)]
    path.write_text("\n".join(["machine,heat,cycle,soon", *lines]) + "\n")
    options = {"kind": "csv", "path": str(path), "unit": "machine"}
    source = open_source("own", options, "people")
    parameters = {**SERIES, "kind": "classification", "channels": 4}
    found = source.load_privately(load_task("timeseries"), parameters, by_unit=True)
    assert [fault.sentence for fault in found.faults] == [
        "4 of 20 units have no window of 8 records in order"
    ]
    data = source.load(load_task("timeseries"), parameters)  # no error without privacy
    assert len(data.train) + len(data.test) == 2 * 16


# ---- a CSV's records -------------------------------------------------------------------------


def csv_source(tmp_path: Path, content: str) -> Csv:
    path = tmp_path / "own.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    return Csv("own", {"kind": "csv", "path": str(path)}, "people")


def ages(source: Csv, *, private: bool) -> list[float]:
    task = load_task("tabular")
    if private:
        data = source.load_privately(task, TABULAR, by_unit=False).data
    else:
        data = source.load(task, TABULAR)
    return sorted(x for part in (data.train, data.test) for x in part.x[:, 0].tolist())


def test_a_quote_that_never_ends_costs_one_record_with_privacy_and_is_found_without(
    tmp_path: Path,
) -> None:
    """It swallowed all that came after it: 41 of 120 records, and 'fits'."""
    lines = ["note,age,sex,outcome", *(f"n,{i},f,{i % 2}" for i in range(120))]
    lines[41] = '"fell,40,f,0'
    source = csv_source(tmp_path, "\n".join(lines) + "\n")
    assert ages(source, private=True) == [float(i) for i in range(120) if i != 40]
    with pytest.raises(DataError, match=r"1 of \d+ rows open a quote.*; row 41 after the header"):
        ages(source, private=False)


def test_a_value_over_lines_is_one_record_without_privacy_and_none_with_it(tmp_path: Path) -> None:
    lines = ["age,sex,outcome,note", *(f"{i},f,{i % 2},n" for i in range(60))]
    lines[11] = '10,f,0,"fell\nagain, and\nagain"'
    source = csv_source(tmp_path, "\n".join(lines) + "\n")
    assert ages(source, private=False) == [float(i) for i in range(60)]
    assert ages(source, private=True) == [float(i) for i in range(60) if i != 10]
    source.piece_bytes = 30  # also where a piece ends within it
    assert ages(source, private=False) == [float(i) for i in range(60)]
    assert ages(source, private=True) == [float(i) for i in range(60) if i != 10]


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 22])
def test_pieces_of_any_size_are_the_same_records(piece: int, tmp_path: Path) -> None:
    lines = ["note,age,sex,outcome", *(f'"n, ""{i}""",{i},f,{i % 2}' for i in range(50))]
    lines[7] = "x" * (MAX_LINE + 10)
    lines[9] = ""
    lines[12] = "n\udcff,11,f,1"  # a byte that no text has
    source = csv_source(tmp_path, "\ufeff" + "\r\n".join(lines))
    source.piece_bytes = piece
    assert ages(source, private=True) == [float(i) for i in range(50) if i not in (6, 8, 11)]


def test_numbers_and_names_are_read_alike_whatever_stands_beside_them(tmp_path: Path) -> None:
    """A missing label makes whole numbers floats, in arrays; they are the same classes and units."""
    x = np.random.default_rng(1).random((100, 64)).astype(np.float32)
    y, who = np.arange(100) % 10, np.arange(100) // 2
    for name, labels, units in (
        ("whole", y, who),
        ("floats", np.where(np.arange(100) == 3, np.nan, y), np.where(who == 7, np.nan, who)),
    ):
        np.savez(tmp_path / f"{name}.npz", x=x, y=labels, who=units)
    sides = {}
    for name in ("whole", "floats"):
        options = {"kind": "npz", "path": str(tmp_path / f"{name}.npz"), "unit": "who"}
        source = open_source("own", options, "people")
        found = source.load_privately(load_task("digits"), {"model": "mlp"}, by_unit=True)
        sides[name] = [
            {(row.tobytes(), int(label)) for row, label in zip(part.x, part.y, strict=True)}
            for part in (found.data.train, found.data.test)
        ]
    for whole, floats in zip(sides["whole"], sides["floats"], strict=True):
        assert floats <= whole
    assert sum(map(len, sides["whole"])) - sum(map(len, sides["floats"])) == 3


def test_the_workers_log_counts_them_and_shows_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.damaged_units import KINDS, body_of, code_of

    kind = KINDS["csv"]
    body = body_of(kind)
    body[1] = [f"p1,{VALUE}000000,f,1".encode(), f"p1,x{VALUE},f,1".encode()]
    with caplog.at_level(logging.DEBUG):
        assert code_of(tmp_path, kind, body) is None
    assert "data 'own' counts as null: column 'age': 1 of 21 values are no numbers" in caplog.text
    assert VALUE not in caplog.text


@pytest.mark.parametrize("read", [numbers, moments, named])
def test_no_cell_of_any_type_raises(read: Any) -> None:
    """Far dates overflow, of whatever resolution: a type is refused, or all that it can hold is read."""
    import pyarrow as pa

    far = [0, 2**62, -(2**62), 86_399_999_999]
    raw = [
        *(pa.array(far, pa.int64()).view(kind) for kind in (
            pa.date64(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us", "UTC"),
            pa.timestamp("ns"), pa.duration("s"), pa.time64("us"), pa.uint64(), pa.float64(),
        )),
        pa.array([2**31 - 1, -(2**31)], pa.int32()).view(pa.date32()),
        pa.array([float("nan"), float("inf"), 6e4], pa.float16()),
        pa.array([None, b"\xff", b"a"], pa.binary()),
        pa.array(["a", None, "1e999", "2026-01-31T25:00", "999999-01-01"], pa.large_string()),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array([True, None]),
        pa.nulls(3),
        pa.array([[1]]),
        pa.array([{"a": 1}]),
        pa.array([Decimal("1e30"), None], pa.decimal128(38, 2)),
        pa.array([Decimal("1e60"), None], pa.decimal256(70, 2)),
    ]  # fmt: skip
    for cells in raw:
        asked = ("a column", "a table") if read is named else ("a column", "a table", ".")
        try:
            read(cells.slice(0, 0), *asked)
        except DataError:
            with pytest.raises(DataError):
                read(cells, *asked)
            continue
        found = read(cells, *asked)
        assert len(found.missing) == len(found.wrong) == len(cells)
        assert not (found.missing & found.wrong).any()


LAB = """
class Records:
    def __len__(self):
        return 40
    def __getitem__(self, i):
        return [i / 100] * 64, i % 10
    def fingerprint(self):
        raise ValueError("77123")
"""


def test_a_version_that_cannot_be_told_fails_no_private_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "raising_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(tmp_path))
    from tests.damaged_units import Kind, code_of

    kind = Kind(
        task="digits",
        unit="row",
        units=0,
        records=lambda _: [],
        damages=[],
        write=lambda folder, body: {"kind": "python", "target": "raising_lab:Records"},
    )
    assert code_of(tmp_path, kind, []) is None
    assert VALUE not in caplog.text
    assert code_of(tmp_path, kind, [], mechanism=None) == "work_failed"
