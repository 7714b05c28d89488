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
    ("strategy=fedav",): ("strategy 'fedav'", "custom, fedavg, fedbuff, fedprox"),
    ("partition=dir",): ("partition 'dir'", "dirichlet, iid, labels"),
    ("federation=world",): (
        "federation 'world'",
        "all_ai_factories, demo, first_seven, numbered, third_wave",
    ),
    ("privacy=dp",): ("privacy 'dp'", "known: dp_sgd, none"),
    ("executor=slurm",): ("executor 'slurm'", "known: local"),
    ("federation.sites=[cesga,luml]",): ("site 'luml'", "cesga", "cyfronet-helios", "'lumi'?"),
    ("partition.kind=odd",): ("partition 'odd'", "iid, labels"),
    ("privacy.mode=dp",): ("privacy 'dp'", "known: dp_sgd, none"),
    ("rounds.mode=later",): ("rounds.mode 'later'", "known: async, sync"),
    ("rounds.select=best",): ("rounds.select 'best'", "all, availability, random"),
    ("rounds.required=[marenostrum5]",): (
        "site in rounds.required 'mare",
        "known: cesga, cyfronet",
    ),
    ("evaluation.keep=all",): ("evaluation.keep 'all'", "known: best, last"),
    ("evaluation.metric=auc",): ("evaluation.metric 'auc'", "known: accuracy, loss"),
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
    ("strategy.mu=1",): ("'strategy.mu'", "strategy.weighting", "a key of strategy=fedprox"),
    ("privacy.delta=1e-4",): ("known: privacy.mode; it is a key of privacy=dp_sgd",),
    ("rounds={quorom:1}",): ("'rounds.quorom'", "did you mean 'rounds.quorum'?"),
    ("rounds.more=1",): ("'rounds.more'", "known: rounds.buffer, rounds.deadline_s"),
    ("round.quorum=2",): ("'round.quorum'", "known: baselines", "rounds"),
    ("hydra.run.dir=x",): ("'hydra.run.dir'", "known: baselines"),
    ("task@other=digits",): ("'task@other'", "known: baselines"),
    ("schema/partition=iid",): ("'schema/partition'", "known: baselines"),
}
VALUES = {
    ("rounds=many",): "rounds.number=many: expected a whole number",
    ("rounds=2.5",): "rounds.number=2.5: expected a whole number",
    ("rounds=true",): "rounds.number=true: expected a whole number",
    ("rounds=",): "rounds.number=: expected a whole number",
    ("rounds=null",): "rounds.number=null: expected a whole number",
    ("rounds=[1]",): "rounds.number=[1]: expected a whole number",
    ("rounds=-1",): "rounds.number=-1: expected a whole number from 1",
    ("rounds=0",): "rounds.number=0: expected a whole number from 1",
    ("rounds=99999999999999999999",): "expected a whole number from 1 to 1000000",
    ("privacy=dp_sgd", "privacy.target_epsilon=0"): "privacy.target_epsilon=0.0: expected",
    ("privacy=dp_sgd", "privacy.noise_multiplier=1"): "exactly one of privacy.target_epsilon",
    ("privacy=dp_sgd", "privacy.delta=2"): "privacy.delta=2.0: expected",
    (
        "privacy=dp_sgd",
        "privacy.delta=0.5",
    ): "privacy.delta: 0.5 is not below 1 / ",
    ("privacy=dp_sgd", "privacy.grad_sample_mode=magic"): "known: ghost, hooks",
    ("privacy=dp_sgd", "task.model=cnn_bn"): "privacy=dp_sgd: ",
    ("privacy=dp_sgd", "task=echo"): "privacy=dp_sgd: ",
    ("max_update_norm_l2=0",): "max_update_norm_l2=0.0: expected a number above 0, or null",
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
    ("rounds.quorum=9",): "rounds.quorum=9: expected a whole number from 1 to 3",
    ("rounds.quorum=0",): "rounds.quorum=0: expected a whole number from 1 to 3",
    (
        "rounds.quorum=1.5",
    ): "rounds.quorum=1.5: expected a whole number from 1 to 3 (sites), a frac",
    ("rounds.quorum=few",): "rounds.quorum=few: expected a whole number from 1 to 3",
    ("rounds.quorum=true",): "rounds.quorum=true: expected a whole number from 1 to 3",
    ("rounds.quorum=nan",): "rounds.quorum=nan: expected a whole number from 1 to 3",
    ("rounds.deadline_s=0",): "rounds.deadline_s=0.0: expected seconds above 0",
    ("rounds.deadline_s=inf",): "rounds.deadline_s=inf: expected seconds above 0",
    ("rounds.lateness_s=-1",): "rounds.lateness_s=-1.0: expected seconds from 0",
    ("rounds.retries=-1",): "rounds.retries=-1: expected a whole number from 0",
    ("rounds.per_round=2",): "rounds.per_round=2: expected null with rounds.select=all",
    ("rounds.select=random",): "rounds.per_round=null: expected how many sites",
    ("rounds.extra=1",): "rounds.extra=1: expected 0 where all sites are asked",
    ("rounds.select=random", "rounds.per_round=2", "rounds.extra=2"): "rounds.extra=2: expected a",
    ("rounds.select=random", "rounds.per_round=1", "rounds.required=[cesga,lumi]"): (
        "rounds.required=[cesga,lumi]: expected at most 1 sites"
    ),
    ("rounds.select=random", "rounds.per_round=1", "rounds.quorum=2"): "rounds.quorum=2: expected",
    ("rounds.buffer=2",): "rounds.buffer=2: expected null; it is for rounds.mode=async",
    (
        "rounds.mode=async",
        "rounds.buffer=4",
    ): "rounds.buffer=4: expected a whole number from 1 to 3",
    ("rounds.mode=async", "rounds.quorum=2"): "rounds.quorum=2: expected null in rounds.mode=async",
    ("rounds.mode=async", "evaluation.keep=best"): "evaluation.keep=best: in async mode",
    ("evaluate=false", "evaluation.patience=2"): "evaluation.patience=2: nothing measures",
    ("privacy=dp_sgd", "evaluation.keep=best"): "privacy.evaluation_noise_multiplier",
    ("task=echo", "evaluation.patience=2"): "evaluation.patience=2: this task reports no metric",
    ("evaluation.patience=0",): "evaluation.patience=0: expected a whole number from 1",
    ("evaluation.min_delta=-1",): "evaluation.min_delta=-1.0: expected a number from 0",
    ("evaluation.central=nope.npz",): "evaluation.central=nope.npz: there is no such file",
    ("checkpoints=0",): "checkpoints=0: expected a whole number from 1",
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


AGENT_CASES = {
    ("site=nowhere",): "unknown site 'nowhere'; known: ",
    ("site=hospital-north",): "; a site that is none of these goes by a number, as site-01, or",
    (
        "polcy=3",
    ): "unknown key in 'polcy=3': 'polcy'; known: data, gateway, ledger, second_place, site",
    ("task=digits",): "unknown key in 'task=digits': 'task'",
    ("gateway=hub",): "gateway=hub: expected host:port",
    ("gateway=hub:0",): "gateway=hub:0: expected host:port",
    ("data.mine=x.csv",): "data.mine: expected a mapping with a kind",
    ("worker.thread=2",): "did you mean 'worker.threads'?",
    ("worker.threads=many",): "worker.threads: expected a whole number",
    ("worker.threads=0",): "worker.threads=0: expected a whole number from 1",
    ("worker.threads",): "'worker.threads': expected key=value",
    ("worker.devices=[tpu]",): "worker.devices=tpu: expected auto, cpu, or cuda:0",
    ("worker.timeout_s=inf",): "worker.timeout_s=inf",
    ("worker.executor=slurm",): "unknown executor 'slurm'; known: local",
    ("ledger=here",): "ledger=here: expected an absolute path",
    ("--foo",): "--foo",
}


@pytest.mark.parametrize("words", AGENT_CASES, ids=" ".join)
def test_site_agent_run(words, capsys, tmp_path: Path):
    (tmp_path / "agent.yaml").write_text("site: cesga\ngateway: hub.example.org:443\n")
    assert site_agent(["run", "--home", str(tmp_path), *words]) == 2
    assert AGENT_CASES[words] in one_line(capsys, "site-agent")


@pytest.mark.parametrize("command", ["run", "tick", "doctor", "status"])
def test_site_agent_without_a_home(command, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDFACTORY_HOME", raising=False)
    assert site_agent([command]) == 2
    assert "site-agent init --home DIR" in one_line(capsys, "site-agent")
    monkeypatch.setenv("FEDFACTORY_HOME", str(tmp_path / "gone"))
    assert site_agent([command]) == 2
    assert "gone holds no agent.yaml" in one_line(capsys, "site-agent")


def test_site_agent_commands(capsys):
    assert site_agent(["walk"]) == 2
    assert "unknown command 'walk'; known: approvals, approve, audit, " in one_line(
        capsys, "site-agent"
    )


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
