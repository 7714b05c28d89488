"""Two lineages over the same people are found, however the copy was made; unrelated ones are not."""

from __future__ import annotations

import csv
import json
import stat

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from site_agents.cli.main import main
from site_agents.config import load_agent_config
from site_agents.data.raw_records import of_table
from site_agents.data.sketch import K, overlap, sketch
from site_agents.doctor.house import examine_data
from site_agents.overlaps import SALT, SKETCHES
from site_agents.policy import DataRule, policy_text
from site_agents.setup import make_home
from tests.policy_orders import pin

KEY = "sha256:" + "1" * 64
SALT_OF_TEST = bytes(range(32))
COLUMNS = ("id", "age", "sex", "bmi", "pressure", "creatinine", "outcome")


def people(count, seed):
    """Rows of a clinic's table: an id that counts, few-valued and measured columns."""
    chance = np.random.default_rng(seed)
    return [
        {
            "id": i + 1,
            "age": int(chance.integers(20, 90)),
            "sex": str(chance.choice(["f", "m"])),
            "bmi": round(float(chance.normal(27, 5)), 1),
            "pressure": round(float(chance.normal(130, 20)), 1),
            "creatinine": round(float(chance.gamma(4, 20)), 2),
            "outcome": int(chance.integers(0, 2)),
        }
        for i in range(count)
    ]


def write(path, rows, columns=None):
    columns = columns or list(rows[0])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def sketched(path, lineage, **options):
    kind = path.suffix.removeprefix(".")
    return sketch(lineage, of_table({"kind": kind, "path": str(path), **options}), SALT_OF_TEST)


def renamed(rows):
    return [{f"col_{i}": row[name] for i, name in enumerate(reversed(COLUMNS))} for row in rows]


COPIES = {
    "a subset": lambda rows, new: rows[100:250],
    "an appended copy": lambda rows, new: [*rows, *new],
    "a copy in a larger set": lambda rows, new: [*new, *rows[:300]],
    "reordered rows": lambda rows, new: rows[::-1],
    "renamed and reordered columns": lambda rows, new: renamed(rows),
    "dropped columns": lambda rows, new: [
        {k: row[k] for k in ("age", "bmi", "creatinine")} for row in rows
    ],
    "an added column": lambda rows, new: [{**row, "site": "north"} for row in rows],
    "another id": lambda rows, new: [{**row, "id": 9000 + row["id"] * 3} for row in rows],
    "a subset with dropped columns": lambda rows, new: [
        {k: row[k] for k in ("sex", "pressure", "creatinine")} for row in rows[: len(rows) // 3]
    ],
}


@pytest.mark.parametrize("size", [600, 10_000])
@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.rule("4")
def test_a_copy_is_found(tmp_path, copy, size):
    rows, new = people(size, 1), people(size, 2)
    one = sketched(write(tmp_path / "a.csv", rows), "a")
    other = sketched(write(tmp_path / "b.csv", COPIES[copy](rows, new)), "b")
    found = overlap(one, other)
    assert found is not None
    assert found.lineages == ("a", "b")
    assert overlap(other, one) == found


@pytest.mark.parametrize("sizes", [(600, 600), (10_000, 600), (10_000, 10_000), (50, 10_000)])
def test_other_people_with_the_same_columns_are_not(tmp_path, sizes):
    """Also where both tables number their rows, and have few-valued columns."""
    first, second = people(sizes[0], 1), people(sizes[1], 2)
    one = sketched(write(tmp_path / "a.csv", first), "a")
    other = sketched(write(tmp_path / "b.csv", second), "b")
    assert overlap(one, other) is None


def test_few_values_cannot_be_told_apart_and_are_no_overlap(tmp_path):
    chance = np.random.default_rng(1)
    tables = [
        [{"sex": int(a), "stage": int(b)} for a, b in chance.integers(0, 4, (500, 2))]
        for _ in range(2)
    ]
    one, other = (
        sketched(write(tmp_path / f"{name}.csv", rows), name)
        for name, rows in zip("ab", tables, strict=True)
    )
    assert one.features == {}
    assert overlap(one, other) is None


def test_units_are_compared_by_name_whatever_the_rows(tmp_path):
    rows = [{"patient": f"P-{i % 100}", "value": i} for i in range(500)]
    others = [{"patient": f" p-{i % 100 + 90}", "value": -i} for i in range(500)]
    one = sketched(write(tmp_path / "a.csv", rows), "a", unit="patient")
    other = sketched(write(tmp_path / "b.csv", others), "b", unit="patient")
    found = overlap(one, other)
    assert found is not None
    assert (found.kind, found.share) == ("units", pytest.approx(0.1))


def test_formats_do_not_matter(tmp_path):
    rows = people(600, 1)
    one = sketched(write(tmp_path / "a.csv", rows), "a")
    table = pa.table({name: [row[name] for row in rows] for name in COLUMNS})
    parquet.write_table(table, tmp_path / "b.parquet")
    comma = [{k: str(v).replace(".", ",") for k, v in row.items()} for row in rows]
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=";")
        writer.writeheader()
        writer.writerows(comma)
    for other in (
        sketched(tmp_path / "b.parquet", "b"),
        sketched(tmp_path / "c.csv", "b", delimiter=";", decimal=","),
    ):
        found = overlap(one, other)
        assert found is not None
        assert (found.kind, found.share) == ("rows", 1.0)


def test_a_sketch_is_small_salted_and_the_same_however_it_is_read(tmp_path):
    path = write(tmp_path / "a.csv", people(10_000, 1))
    one = sketched(path, "a")
    assert all(len(feature.hashes) <= K for feature in one.features.values())
    assert one == sketched(path, "a")
    other = sketch("a", of_table({"kind": "csv", "path": str(path)}), bytes(32))
    assert not set(one.features["rows"].hashes) & set(other.features["rows"].hashes)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1000))
@settings(max_examples=50, deadline=None)
def test_the_share_is_that_of_the_smaller_set(start, other_start, count):
    """Of sets that are kept whole the share is exact."""
    from site_agents.data.sketch import Records

    def of(begin, lineage):
        values = np.arange(begin, begin + count, dtype=np.uint64).reshape(-1, 1)
        records = Records(values=values, are_columns=True, units=[], unique=[True])
        return sketch(lineage, [records], SALT_OF_TEST)

    common = max(0, min(start, other_start) + count - max(start, other_start))
    found = overlap(of(start, "a"), of(other_start, "b"))
    if found is None:
        assert common < 2 or common < 0.01 * count
    else:
        assert found.share == pytest.approx(common / count)


# ---- at the site -------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    write(tmp_path / "a.csv", people(600, 1))
    write(tmp_path / "b.csv", [*people(600, 1)[:200], *people(300, 3)])
    home = tmp_path / "home"
    make_home(
        home,
        site="cesga",
        gateway_address="lead.example:9443",
        data={n: {"kind": "csv", "path": str(tmp_path / f"{n}.csv")} for n in "ab"},
        policy_text=policy(north="a"),
    )
    (home / "policy.yaml").write_text(policy(north="a", south="b"))
    return home


def policy(**lineages):
    return policy_text(
        coordinators={"lead": KEY},
        operators={"ada": pin(KEY)},
        data={
            source: DataRule(lineage=lineage, public_size=500, unit="row")
            for lineage, source in lineages.items()
        },
        tasks={},
    )


def faults(home):
    config = load_agent_config(home, [])
    return [f.text for f in examine_data(config) if f.level == "fail"]


@pytest.mark.rule("4")
def test_data_check_doctor_and_open_lineage_find_it_until_it_is_acknowledged(home, capsys):
    words = ["--home", str(home)]
    assert main(["data", "check", "a", *words]) == 0
    assert main(["data", "check", "b", *words]) == 1
    assert "lineages 'north' and 'south' share about" in capsys.readouterr().out
    assert len(faults(home)) == 2
    opening = ["ledger", "open-lineage", "south", *words, "--reason", "another town"]
    assert main(opening) == 2
    assert "share about" in capsys.readouterr().err
    why = ["--reason", "twins"]
    assert main(["ledger", "acknowledge-overlap", "south", "nroth", *words, *why]) == 2
    assert "unknown lineage 'nroth'; known: north, south" in capsys.readouterr().err
    assert main(["ledger", "acknowledge-overlap", "south", "north", *words, *why]) == 0
    assert main(opening) == 0
    assert main(["data", "check", "b", *words]) == 0
    assert faults(home) == []
    chain = (home / "audit" / "chain.jsonl").read_text()
    assert '"overlap_acknowledged"' in chain
    assert '"twins"' in chain


def test_open_lineage_finds_it_by_itself_once_the_other_was_seen(home, capsys):
    assert faults(home) != []
    opening = ["ledger", "open-lineage", "south", "--home", str(home), "--reason", "new"]
    assert main(opening) == 2


def test_a_source_that_gets_another_lineage_is_found(home):
    assert main(["data", "check", "a", "--home", str(home)]) == 0
    (home / "policy.yaml").write_text(policy(fresh="a"))
    assert main(["data", "check", "a", "--home", str(home)]) == 1


def test_what_a_lineage_once_held_counts_when_the_data_were_replaced(home, tmp_path):
    assert main(["data", "check", "a", "--home", str(home)]) == 0
    write(tmp_path / "a.csv", people(600, 9))
    assert main(["data", "check", "a", "--home", str(home)]) == 0
    assert main(["data", "check", "b", "--home", str(home)]) == 1


@pytest.mark.rule("5")
def test_salt_and_sketches_are_the_owners_alone_and_hold_no_value(home):
    assert main(["data", "check", "a", "--home", str(home)]) == 0
    files = [home / "data" / SALT, *(home / "data" / SKETCHES).iterdir()]
    assert len(files) == 2
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(json.loads(files[1].read_text())) == {"lineage", "features"}


def test_data_that_are_not_there_yet_keep_no_lineage_closed(home, tmp_path, capsys):
    (tmp_path / "b.csv").unlink()
    opening = ["ledger", "open-lineage", "south", "--home", str(home), "--reason", "new"]
    assert main(opening) == 0
    assert "not held against other lineages" in capsys.readouterr().err
