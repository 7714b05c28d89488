"""What bad input gets: exit 2 and one line that says what was found and what is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedfactory.cli.main import main
from site_agents.cli.main import main as site_agent

NAMES = {
    ("task=digit",): ("task 'digit'", "breast_cancer, digits, echo", "did you mean 'digits'?"),
    ("task=",): ("task ''", "breast_cancer, digits, echo"),
    ("task=null",): ("task 'null'", "breast_cancer, digits, echo"),
    ("task=[digits]",): ("task '[digits]'", "breast_cancer, digits, echo"),
    ("strategy=fedav",): ("strategy 'fedav'", "custom, fedavg, fedprox"),
    ("partition=dir",): ("partition 'dir'", "dirichlet, iid, labels"),
    ("federation=world",): ("federation 'world'", "demo, numbered"),
    ("privacy=dp",): ("privacy 'dp'", "known: none"),
    ("executor=slurm",): ("executor 'slurm'", "known: local"),
    ("federation.sites=[cesga,luml]",): ("site 'luml'", "cesga", "cyfronet-helios", "'lumi'?"),
    ("partition.kind=odd",): ("partition 'odd'", "iid, labels"),
    ("privacy.mode=dp",): ("privacy 'dp'", "known: none"),
    ("executor.name=x",): ("executor 'x'", "known: local"),
    ("task.name=other",): ("task 'other'", "digits, echo"),
}
KEYS = {
    ("foo=1",): ("'foo'", "known: baselines, batch_size", "task"),
    ("+foo=1",): ("'foo'", "known: baselines"),
    ("++foo=1",): ("'foo'", "known: baselines"),
    ("partition.alpah=1",): ("'partition.alpah'", "did you mean 'partition.alpha'?"),
    ("+partition.alpah=1",): ("'partition.alpah'", "did you mean 'partition.alpha'?"),
    ("partition=iid", "partition.alpha=1"): ("'partition.alpha'", "known: partition.kind"),
    ("federation.count=4",): ("'federation.count'", "federation.sites"),
    ("federation=numbered", "federation.sites=[cesga]"): ("federation.sites", "federation.count"),
    ("task.modl=cnn",): ("'task.modl'", "did you mean 'task.model'?"),
    ("task=echo", "task.data=x.npz"): ("'task.data'", "task.megabytes"),
    ("strategy.mu=1",): ("'strategy.mu'", "strategy.weighting"),
    ("round={quorom:1}",): ("'round.quorom'", "did you mean 'round.quorum'?"),
    ("rounds.more=1",): ("'rounds.more'", "known: rounds"),
    ("hydra.run.dir=x",): ("'hydra.run.dir'", "known: baselines"),
    ("task@other=digits",): ("'task@other'", "known: baselines"),
    ("schema/partition=iid",): ("'schema/partition'", "known: baselines"),
}
VALUES = {
    ("rounds=many",): "rounds=many: expected a whole number",
    ("rounds=2.5",): "rounds=2.5: expected a whole number",
    ("rounds=true",): "rounds=true: expected a whole number",
    ("rounds=",): "rounds=: expected a whole number",
    ("rounds=null",): "rounds=null: expected a whole number",
    ("rounds=[1]",): "rounds=[1]: expected a whole number",
    ("rounds=-1",): "rounds=-1: expected a whole number from 1",
    ("rounds=0",): "rounds=0: expected a whole number from 1",
    ("rounds=99999999999999999999",): "expected a whole number from 1 to 1000000",
    ("lr=nan",): "lr=nan: expected a number above 0",
    ("lr=inf",): "lr=inf: expected a number above 0",
    ("lr=0",): "lr=0.0: expected a number above 0",
    ("lr=fast",): "lr=fast: expected a number",
    ("lr=${nope}",): "lr=${nope}: expected a value or a reference that resolves",
    ("out=${oc.env:FEDFACTORY_NOT_SET}",): "FEDFACTORY_NOT_SET",
    ("momentum=1",): "momentum=1.0: expected",
    ("max_steps=0",): "max_steps=0: expected",
    ("max_steps=few",): "max_steps=few: expected a whole number, or null",
    ("local_epochs=0",): "local_epochs=0: expected",
    ("batch_size=0",): "batch_size=0: expected",
    ("seed=-1",): "seed=-1: expected a whole number from 0",
    ("seed=9223372036854775808",): "seed=9223372036854775808: expected",
    ("evaluate=maybe",): "evaluate=maybe: expected true or false",
    ("partition.alpha=0",): "partition.alpha=0.0: expected a number above 0",
    ("partition.alpha=x",): "partition.alpha=x: expected a number",
    ("partition.alpha=nan",): "partition.alpha=nan: expected a number above 0",
    ("partition=labels", "partition.labels_per_site=0"): "partition.labels_per_site=0: expected",
    ("round.quorum=9",): "round.quorum=9: expected a whole number from 1 to 3",
    ("round.quorum=0",): "round.quorum=0: expected a whole number from 1 to 3",
    ("round.deadline_s=0",): "round.deadline_s=0.0: expected seconds above 0",
    ("round.deadline_s=inf",): "round.deadline_s=inf: expected seconds above 0",
    ("round=3",): "round=3: expected its keys one by one",
    ("federation.sites=cesga",): "federation.sites=cesga: expected a list",
    ("federation.sites=[]",): "federation.sites=[]: expected distinct names",
    ("federation.sites=[lumi,lumi]",): "federation.sites=[lumi,lumi]: expected distinct names",
    ("federation=numbered", "federation.count=0"): "federation.count=0: expected",
    ("task.model=resnet",): "task.model=resnet: expected one of mlp, cnn",
    ("task=echo", "task.megabytes=big"): "task.megabytes=big: expected a whole number",
    ("task=echo", "task.megabytes=0"): "task.megabytes=0: expected a whole number from 1",
    ("task.data=nope.npz",): "task.data=nope.npz: there is no such file",
    ("task.data=[1]",): "task.data=[1]: expected the path of an NPZ file",
    ("strategy=custom",): "strategy._target_: no value and no default; add strategy._target_=",
    ("strategy=custom", "strategy._target_=FedAvg"): "strategy._target_=FedAvg: expected package",
    ("strategy=custom", "strategy._target_=a.B", "strategy.x={a:1}"): "strategy.x={'a': 1}",
    ("strategy=custom", "strategy._target_=a.B", "+strategy.x=nan"): "strategy.x=nan: expected",
}
FORMS = {
    ("rounds",): "'rounds': expected key=value",
    ("",): "'': expected key=value",
    ("=4",): "'=4': expected key=value",
    ("rounds =4",): "'rounds =4': expected key=value",
    ("lr=[",): "'lr=[': expected key=value",
    ("rounds=1,2",): "'rounds=1,2': one run takes one value",
    ("lr=choice(1,2)",): "'lr=choice(1,2)': one run takes one value",
    ("~rounds",): "'~rounds': a key cannot be removed",
    ("-m", "rounds=1,2"): "--multirun",
    ("--foo",): "--foo",
    ("--cfg",): "--cfg",
    ("--cfg", "hydra"): "'hydra'",
}


def one_line(capsys: pytest.CaptureFixture[str], program: str = "fedfactory") -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"{program}: ")
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.endswith("\n")
    return shown.err


@pytest.mark.parametrize("words", NAMES, ids=" ".join)
def test_unknown_names_are_answered_with_the_known_ones(words, capsys):
    assert main(["local", *words]) == 2
    line = one_line(capsys)
    assert "unknown" in line
    for part in NAMES[words]:
        assert part in line


@pytest.mark.parametrize("words", KEYS, ids=" ".join)
def test_unknown_keys_are_answered_with_the_known_ones(words, capsys):
    assert main(["local", *words]) == 2
    line = one_line(capsys)
    assert "unknown key" in line
    for part in KEYS[words]:
        assert part in line


@pytest.mark.parametrize("words", VALUES, ids=" ".join)
def test_values_of_a_wrong_type_or_range_name_their_key(words, capsys):
    assert main(["local", *words]) == 2
    assert VALUES[words] in one_line(capsys)


@pytest.mark.parametrize("words", FORMS, ids=" ".join)
def test_malformed_arguments_are_shown_as_typed(words, capsys):
    assert main(["local", *words]) == 2
    assert FORMS[words] in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["lokal"], ["command 'lokal'", "local", "report", "version", "did you mean 'local'?"]),
        (["version", "--foo"], ["--foo"]),
        (["report"], ["folder"]),
        (["report", "nowhere"], ["nowhere", "summary.json"]),
    ],
)
def test_other_commands(words, parts, capsys):
    assert main(words) == 2
    line = one_line(capsys)
    for part in parts:
        assert part in line


AGENT = ("home=h", "gateway.address=hub:443")
AGENT_CASES = {
    (
        "site=nowhere",
        *AGENT,
        "data.source=npz",
        "data.task=digits",
    ): "unknown site 'nowhere'; known: cesga,",
    ("site=cesga",): "data.source, gateway.address, home: no value",
    ("site=cesga", "policy.max_round=3"): "did you mean 'policy.max_rounds'?",
    ("task=digits",): "unknown key 'task'; known: data, gateway, home",
    (
        "site=cesga",
        "home=h",
        "gateway.address=hub",
        "data.source=npz",
        "data.task=digits",
    ): "gateway.address=hub",
    (
        "site=cesga",
        "home=h",
        "gateway.address=hub:0",
        "data.source=npz",
        "data.task=digits",
    ): "expected host:port",
    ("site=cesga", *AGENT, "data.source=csv"): "unknown data.source 'csv'; known: npz, partition",
    (
        "site=cesga",
        *AGENT,
        "data.source=npz",
        "data.task=digits",
    ): "data.source=npz needs data.path=FILE",
    (
        "site=cesga",
        *AGENT,
        "data.source=npz",
        "data.task=digits",
        "data.path=no",
    ): "data.path=no: there is no such",
    ("site=cesga", *AGENT, "data.source=partition", "data.task=d"): "unknown data.task 'd'",
    ("site=cesga", *AGENT, "data.source=partition", "data.task=echo"): "data.sites=[]",
    ("site=cesga", "worker.threads=many"): "worker.threads=many: expected a whole number",
    ("site=cesga", "worker.threads"): "'worker.threads': expected key=value",
    ("--foo",): "--foo",
}
AGENT_RANGES = {
    "worker.threads=0": "worker.threads=0",
    "worker.device=tpu": "worker.device=tpu: expected one of auto, cpu, cuda",
    "worker.timeout_s=inf": "worker.timeout_s=inf",
    "policy.max_rounds=0": "policy.max_rounds=0: expected a whole number from 1",
    "policy.min_examples=-1": "policy.min_examples=-1",
    "policy.tasks=[digit]": "unknown policy.tasks 'digit'",
    "policy.privacy=[dp]": "unknown policy.privacy 'dp'; known: none",
}


@pytest.mark.parametrize("words", AGENT_CASES, ids=" ".join)
def test_site_agent_run(words, capsys):
    assert site_agent(["run", *words]) == 2
    assert AGENT_CASES[words] in one_line(capsys, "site-agent")


@pytest.mark.parametrize("word", AGENT_RANGES)
def test_site_agent_ranges(word, capsys, tmp_path: Path):
    data = tmp_path / "d.npz"
    data.touch()
    full = [
        "site=site-07",
        *AGENT,
        "data.source=npz",
        "data.task=digits",
        f"data.path={data}",
        word,
    ]
    assert site_agent(["run", *full]) == 2
    assert AGENT_RANGES[word] in one_line(capsys, "site-agent")


def test_site_agent_commands(capsys):
    assert site_agent(["walk"]) == 2
    assert "unknown command 'walk'; known: run, sites" in one_line(capsys, "site-agent")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("fedfactory.cli.main", ["local", "rounds=many"]),
        ("fedfactory.cli.main", ["local", "task=digit"]),
        ("site_agents.cli.main", ["run", "site=cesga"]),
    ],
)
def test_as_processes(module, words, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []  # Hydra leaves no folder behind
