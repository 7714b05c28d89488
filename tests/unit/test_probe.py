"""What is concluded from listings, and the patch.

The Slurm listings were captured from Slurm 22.05.8 (Debian 12): one node registered, the others
down; host names and the kernel's name were changed. The nvidia-smi lines are written by hand.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from fedfactory.contracts.errors import EnvironmentFailedError
from site_agents.catalogue import load_site, site_of, site_text
from site_agents.cli.main import main
from site_agents.probe import (
    NODES,
    NVIDIA,
    PARTITIONS,
    SLURM_VERSION,
    Seen,
    facts_seen,
    gpus_of,
    minutes,
)
from site_agents.probe_patch import differing, patch

LISTINGS = Path(__file__).parents[1] / "golden" / "listings"
TODAY = "2026-11-21"


def slurm(kinds: str) -> dict[tuple[str, ...], str]:
    return {
        SLURM_VERSION: (LISTINGS / "sinfo_version.txt").read_text(),
        NODES: (LISTINGS / f"{kinds}_nodes.txt").read_text(),
        PARTITIONS: (LISTINGS / f"{kinds}_partitions.txt").read_text(),
    }


def values(listings, in_job=False):
    seen = facts_seen(listings, architecture="x86_64", in_job=in_job)
    return {key: fact.value for key, fact in seen.items()}


def test_a_machine_with_one_kind_of_gpu():
    assert values(slurm("one_kind")) == {
        "login_cpu_architecture": "x86_64",
        "scheduler": "slurm",
        "scheduler_version": "22.05.8",
        "nodes": 1,  # with GPUs: the three CPU nodes do not count
        "gpus_total": 2,
        "gpus_per_node": 2,
        "usable_cpus_per_node": 2,
        "gpu_model": "a100",
        "cpu_architecture": "x86_64",
        "gpu_partitions_max_minutes": {"standard-g": 2880, "dev-g": 180, "free-g": None},
    }


def test_a_machine_with_three_kinds_of_gpu():
    found = values(slurm("three_kinds"), in_job=True)
    assert found == {
        "scheduler": "slurm",
        "scheduler_version": "22.05.8",
        "nodes": {"a100": 1, "gh200": 2, "gpu": 1},
        "gpus_total": 18,
        "gpus_per_node": {"a100": 2, "gh200": 4, "gpu": 8},
        "usable_cpus_per_node": {"a100": 2, "gh200": 288, "gpu": 64},
        "gpu_partitions_max_minutes": {
            "standard-g": 2880,
            "dev-g": 180,
            "free-g": None,
            "hopper": 720,
            "mixed": 30,
        },
    }
    # no login node; gpu:8 names no model; nodes that never registered tell no architecture


def test_each_fact_names_the_command_that_told_it():
    seen = facts_seen(slurm("one_kind"), architecture="x86_64", in_job=False)
    assert seen["nodes"].source == "scontrol --oneliner show node"
    assert seen["gpu_partitions_max_minutes"].source == "scontrol --oneliner show partition"
    assert seen["scheduler_version"].source == "sinfo --version"


def test_hardware_threads_are_not_cores():
    line = "NodeName=n Arch=x86_64 CPUEfctv=112 CPUTot=128 Gres=gpu:mi250:8 ThreadsPerCore=2"
    assert values({NODES: line})["usable_cpus_per_node"] == 56


def test_nodes_of_one_kind_that_differ_leave_the_fact_unknown():
    lines = "NodeName=a Gres=gpu:a100:4 CPUEfctv=64\nNodeName=b Gres=gpu:a100:8 CPUEfctv=64\n"
    found = values({NODES: lines})
    assert "gpus_per_node" not in found
    assert found["gpus_total"] == 12
    assert found["usable_cpus_per_node"] == 64


def test_a_field_inside_another_fields_text_is_not_taken_for_it():
    line = "NodeName=n Gres=gpu:a100:4 OS=Linux 6.1 #1 Reason=wait for Gres=gpu:h100:9 [root]"
    assert values({NODES: line})["gpu_model"] == "a100"


def test_a_gpu_node_tells_model_and_memory():
    job = values({NVIDIA: "NVIDIA A100-SXM4-64GB, 65536\n" * 4}, in_job=True)
    assert job == {"stack": "cuda", "gpu_model": "NVIDIA A100-SXM4-64GB", "gpu_memory_gb": 64}
    one_kind = values({**slurm("one_kind"), NVIDIA: "NVIDIA A100-SXM4-40GB, 40960\n"})
    assert one_kind["gpu_model"] == "NVIDIA A100-SXM4-40GB"
    assert one_kind["gpu_memory_gb"] == 40
    # a node of one kind says nothing about the machine's other kinds
    three = values({**slurm("three_kinds"), NVIDIA: "NVIDIA A100-SXM4-40GB, 40960\n"})
    assert three["stack"] == "cuda"
    assert not {"gpu_model", "gpu_memory_gb"} & set(three)
    unknown = values({NVIDIA: "NVIDIA GH200 120GB, [N/A]\n"}, in_job=True)
    assert unknown == {"stack": "cuda", "gpu_model": "NVIDIA GH200 120GB"}


def test_nothing_listed_nothing_seen():
    assert values({}, in_job=True) == {}
    assert values({NODES: "", PARTITIONS: "", SLURM_VERSION: "", NVIDIA: ""}, in_job=True) == {}


@pytest.mark.parametrize(
    ("listed", "expected"),
    [("02:00:00", 120), ("2-00:00:00", 2880), ("00:30:59", 30), ("UNLIMITED", None)],
)
def test_times(listed, expected):
    assert minutes(listed) == expected


@pytest.mark.parametrize("listed", ["", "30", "a-00:00:00", "1:2:3:4", "infinite", "-1:00:00"])
def test_what_is_no_time_is_named(listed):
    with pytest.raises(EnvironmentFailedError, match=r"MaxTime=.*: expected .days-.hours"):
        minutes(listed)


@pytest.mark.parametrize(
    ("gres", "expected"),
    [
        ("(null)", {}),
        ("", {}),
        ("gpu:4", {"gpu": 4}),
        ("gpu:gh200:4(S:0-3)", {"gh200": 4}),
        ("craynetwork:4,gpu:a100:4(S:0,3),shard:16", {"a100": 4}),
        ("gpu:a100:3(S:0),gpu:a100_1g.5gb:7(S:1)", {"a100": 3, "a100_1g.5gb": 7}),
    ],
)
def test_gpus_of_a_node(gres, expected):
    assert gpus_of(gres) == expected


def test_a_count_that_is_no_number_is_named():
    with pytest.raises(EnvironmentFailedError, match="Gres=gpu:a100:some: expected gpu"):
        gpus_of("gpu:a100:some")


def applied(machine: str, text: str, diff: str, folder: Path) -> str:
    """Return the file after `git apply`."""
    (folder / "conf/site").mkdir(parents=True)
    file = folder / f"conf/site/{machine}.yaml"
    file.write_text(text)
    subprocess.run(["git", "apply", "-"], cwd=folder, input=diff, text=True, check=True)
    return file.read_text()


@pytest.mark.parametrize("machine", ["cesga-finisterrae3", "piast"])  # a filled one and a stub
def test_the_patch_fills_what_is_unknown_and_nothing_else(machine, tmp_path):
    before = load_site(machine)
    seen = facts_seen(slurm("one_kind"), architecture="x86_64", in_job=False)
    diff = patch(before, site_text(machine), seen, TODAY)
    after = site_of(machine, yaml.safe_load(applied(machine, site_text(machine), diff, tmp_path)))
    for key, fact in before.facts.items():
        if fact.value is not None or key not in seen:
            assert after.facts[key] == fact, key
        else:
            assert after.facts[key].value == seen[key].value
            assert after.facts[key].source == seen[key].source
            assert (after.facts[key].grade, after.facts[key].verified_on) == ("on_site", TODAY)
    assert after.facts["gpus_per_node"].value == 2
    assert patch(after, "", seen, TODAY) == ""  # a second probe finds nothing more


def test_a_hostile_name_of_a_partition_stays_a_text(tmp_path):
    limits = {"a: {b}, 'c' # null": 60}
    seen = {"gpu_partitions_max_minutes": Seen(value=limits, source="scontrol")}
    diff = patch(load_site("piast"), site_text("piast"), seen, TODAY)
    after = yaml.safe_load(applied("piast", site_text("piast"), diff, tmp_path))
    assert after["gpu_partitions_max_minutes"]["value"] == limits


def test_what_differs_is_said_and_left():
    seen = {
        "gpu_model": Seen(value="NVIDIA A100-SXM4-64GB", source="nvidia-smi"),
        "gpus_total": Seen(value=127, source="scontrol show node"),
    }
    site = load_site("cesga")
    assert differing(site, seen) == [
        "gpus_total: the catalogue has 128 (third_party), scontrol show node says 127"
    ]
    assert patch(site, site_text(site.machine), seen, TODAY) == ""


@pytest.fixture
def on_site(tmp_path, monkeypatch):
    """A PATH whose sinfo and scontrol print the captured listings; nvidia-smi finds no driver."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in {
        "sinfo": f"cat {LISTINGS}/sinfo_version.txt",
        "scontrol": f"cat {LISTINGS}/one_kind_$3s.txt",
        "nvidia-smi": "echo no driver >&2; exit 9",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return commands


def test_the_command_writes_a_new_file_and_never_overwrites(on_site, tmp_path, capsys):
    out = tmp_path / "cesga.patch"
    assert main(["probe", "cesga", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "nvidia-smi --query-gpu=name,memory.total" in said.err
    assert "exit code 9: no driver" in said.err
    assert "differs, not in the patch: gpus_total: the catalogue has 128" in said.err
    assert "fills 7 unknown facts of cesga-finisterrae3: nodes, " in said.err
    first = out.read_text()
    assert first.startswith("--- a/conf/site/cesga-finisterrae3.yaml\n+++ b/conf/site/")
    assert main(["probe", "cesga", "--out", str(out)]) == 2
    assert "is there already; name a new file" in capsys.readouterr().err
    assert out.read_text() == first


def test_the_command_prints_the_patch(on_site, capsys):
    assert main(["probe", "1healthai"]) == 0
    assert "\n+nodes: {value: 1, grade: on_site, source: scontrol" in capsys.readouterr().out


def test_a_machine_without_any_of_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert main(["probe", "lumi"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("no such command here") == 4
    assert "nothing seen that the catalogue lacks of lumi-g" in said.err


def test_bad_words(tmp_path, capsys):
    assert main(["probe", "lum"]) == 2
    assert "unknown site 'lum'" in capsys.readouterr().err
    assert main(["probe"]) == 2
    assert "NAME" in capsys.readouterr().err


def test_a_folder_that_is_not_there(on_site, tmp_path, capsys):
    assert main(["probe", "cesga", "--out", str(tmp_path / "no" / "x.patch")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
