"""`site-agent data`, and that what docs/data.md shows works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import csv, parquet

from site_agents.cli.main import main
from site_agents.data.sources import open_source
from site_agents.policy import DataRule, policy_text
from site_agents.setup import make_home

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
ROW = DataRule(lineage="cohort", public_size=300, unit="row")


def home(tmp_path: Path, data: Any, rules: dict[str, DataRule], tasks: dict[str, str]) -> str:
    folder = tmp_path / "home"
    text = policy_text(coordinators={}, operators={}, data=rules, tasks=tasks)
    make_home(folder, site="cesga", gateway_address="localhost:1", data=data, policy_text=text)
    return str(folder)


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    path = tmp_path / "patients.csv"
    assert main(["data", "generate", "tabular", str(path), "--count", "300"]) == 0
    return path


def test_check_shows_counts_and_no_value(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"kind": "csv", "path": str(patients)}
    at = home(tmp_path, {"patients": source}, {"patients": ROW}, {"tabular": "patients"})
    capsys.readouterr()
    assert main(["data", "check", "patients", "--home", at]) == 0
    shown = capsys.readouterr().out
    assert "data 'patients', lineage 'cohort': 300 records" in shown
    assert "seen for the first time" in shown
    assert re.search(r"^smoker +text +0$", shown, re.MULTILINE)
    assert "fits task 'tabular'" in shown
    assert "policy.yaml: public_size 300, unit row" in shown
    counts = re.findall(r"(train|test): (\d+) examples: 0 (\d+), 1 (\d+)", shown)
    assert sum(int(examples) for _, examples, *_ in counts) == 300
    assert all(int(n) == int(a) + int(b) for _, n, a, b in counts)
    for cell in csv.read_csv(patients).column("bmi").to_pylist():
        assert str(cell) not in shown


@pytest.mark.parametrize(
    "first", ["50,25.5,f,1", "f,2026-11-03,anna,x", "eins,zwei,'1.234,5',vier"]
)
def test_a_first_record_in_place_of_a_header_is_not_shown(
    first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text((first.replace("'", '"') + "\n") * 300)
    source = {"kind": "csv", "path": str(tmp_path / "in.csv")}
    at = home(tmp_path, {"patients": source}, {"patients": ROW}, {"tabular": "patients"})
    capsys.readouterr()
    for words in ((), ("--json",)):
        assert main(["data", "check", "patients", "--home", at, *words]) == 1
        said = "".join(capsys.readouterr())
        assert "found 4 columns; a name reads as a number or a date" in said
        assert "column 4" in said
        for value in ("25.5", "2026-11-03", "anna", "eins", "1.234"):
            assert value not in said.replace(str(tmp_path), "")


def test_names_of_another_unicode_form_are_said_to_be_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("a\u0302ge,sex,out\n" + "50,f,0\n49,m,1\n" * 50)
    source = {"kind": "csv", "path": str(tmp_path / "in.csv"), "columns": {"age": "\u00e2ge"}}
    at = home(tmp_path, {"patients": source}, {"patients": ROW}, {"tabular": "patients"})
    words = ["task.label=out:0|1", "task.numeric=age:50:20", "task.categorical=sex:f|m"]
    assert main(["data", "check", "patients", "--home", at, "--task", "tabular", *words]) == 1
    assert "differs in its Unicode form alone" in capsys.readouterr().out


def test_task_parameters_may_be_quoted_as_a_run_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("age,sex,out\n" + "50,f,0\n49,m,1\n" * 50)
    source = {"kind": "csv", "path": str(tmp_path / "in.csv")}
    at = home(tmp_path, {"patients": source}, {"patients": ROW}, {"tabular": "patients"})
    words = ['task.label="out:0|1"', "task.numeric='age:50:20'", "task.categorical=sex:f|m"]
    assert main(["data", "check", "patients", "--home", at, "--task", "tabular", *words]) == 0
    assert "fits task 'tabular'" in capsys.readouterr().out


def test_check_says_what_changed(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"kind": "csv", "path": str(patients)}
    at = home(tmp_path, {"patients": source}, {"patients": ROW}, {"tabular": "patients"})
    said = []
    text = patients.read_text()
    for content in (
        text,
        text,
        text + "50,25,130,100,f,never,1\n",
        text.replace("never", "former"),
    ):
        patients.write_text(content)
        capsys.readouterr()
        assert main(["data", "check", "patients", "--home", at, "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out)["change"])
    assert said == ["first seen", "unchanged", "appended", "changed"]


def test_check_says_what_does_not_fit(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {
        "patients": {"kind": "csv", "path": str(patients)},
        "others": {"kind": "csv", "path": str(patients)},
        "gone": {"kind": "csv", "path": str(tmp_path / "gone.csv")},
    }
    by_person = DataRule(lineage="cohort", public_size=300, unit="person")
    at = home(tmp_path, data, {"patients": by_person, "gone": ROW}, {"tabular": "patients"})

    def check(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["data", "check", *words, "--home", at])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, shown = check("patients")
    assert code == 1
    assert "policy.yaml's unit is person, and the data are read row by row" in shown
    code, shown = check("patients", "task.numeric=height:170:20")
    assert code == 1
    assert "does not fit task 'tabular'" in shown
    assert "no column 'height'" in shown
    assert "height: a number from" in shown
    code, shown = check("patients", "--task", "digits", "--json")
    assert code == 1
    assert "no column 'x0'" in json.loads(shown)["tasks"][0]["problem"]
    code, shown = check("others", "--task", "tabular")
    assert code == 1
    assert "says nothing of this source" in shown
    for words, said in (
        (["gone"], "gone.csv: there is no such file"),
        (["patient"], "did you mean 'patients'"),
        (["patients", "--task", "tabula"], "did you mean 'tabular'"),
        (["patients", "hidden=3"], "unrecognized arguments: hidden=3"),
        (["patients", "task.hiden=3"], "did you mean 'task.hidden'"),
        (["patients", "task.hidden=x"], "a whole number from 1"),
        (["others", "task.hidden=3"], "--task TASK"),
    ):
        code, shown = check(*words)
        assert code == 2
        assert said in shown


def test_a_policys_own_parameters_are_those_checked(patients: Path, tmp_path: Path) -> None:
    source = {"kind": "csv", "path": str(patients)}
    at = home(tmp_path, {"patients": source}, {"patients": ROW}, {"tabular": "patients"})
    policy = Path(at) / "policy.yaml"
    rules = yaml.safe_load(policy.read_text())
    rules["tasks"]["tabular"]["parameters"] = {"numeric": ["height:170:20"]}
    policy.write_text(yaml.safe_dump(rules))
    assert main(["data", "check", "patients", "--home", at]) == 1
    assert main(["data", "check", "patients", "--home", at, "task.numeric=age:50:20"]) == 0


def test_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(task: str, name: str, *words: str) -> Any:
        path = tmp_path / name
        assert main(["data", "generate", task, str(path), *words]) == 0
        return parquet.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path)

    words = ("--count", "20", "task.kind=regression", "task.label=cost:1000:500")
    first = make("tabular", "1.parquet", *words)
    assert first.num_rows == 20
    assert first.schema.field("cost").type == pa.float64()
    assert make("tabular", "2.parquet", *words).equals(first)
    assert not make("tabular", "3.parquet", *words, "--seed", "2").equals(first)
    machines = make("timeseries", "4.csv", "--count", "3", "task.sensors=heat:70:10")
    assert machines.column_names == ["machine", "cycle", "heat", "fails_soon"]
    assert len(set(machines.column("machine").to_pylist())) == 3
    capsys.readouterr()
    for bad, said in (
        (["tabular", str(tmp_path / "4.csv")], "is there already"),
        (["tabular", str(tmp_path / "5.txt")], "ends in .csv or .parquet"),
        (["tabular", str(tmp_path / "no" / "5.csv")], "cannot be written"),
        (["tabular", str(tmp_path / "5.csv"), "--count", "0"], "--count 0"),
        (["digits", str(tmp_path / "5.csv")], "invalid choice"),
    ):
        assert main(["data", "generate", *bad]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "5.csv").exists()


def test_the_sources_of_the_docs_open() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    opened = [
        open_source(name, options, "lineage")
        for block in blocks
        for name, options in yaml.safe_load(block).get("data", {}).items()
        if "kind" in options
    ]
    assert len(opened) == 5


def test_the_commands_of_the_docs_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = DOCS.read_text().replace("/data/", f"{tmp_path}/")
    blocks = [yaml.safe_load(b) for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[:2]]
    rules = {name: DataRule(**rule) for name, rule in blocks[1]["data"].items()}
    tasks = {name: rule["source"] for name, rule in blocks[1]["tasks"].items()}
    at = home(tmp_path, blocks[0]["data"], rules, tasks)
    commands = re.findall(r"^    site-agent (data .*)$", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert main([at if word == "HOME" else word for word in command.split()]) == 0
    shown = capsys.readouterr().out
    assert "fits task 'tabular'" in shown
    assert re.search(r"train: \d+ examples of \d+ units", shown)
