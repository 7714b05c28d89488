"""A plan whose rules cannot be kept is none: it cannot be built, nor read, and the rule is named."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fedfactory import run_rules
from fedfactory.contracts.codec import encode, from_json, to_json
from fedfactory.contracts.errors import FieldError, UsageError
from fedfactory.contracts.run_plan import RoundRules, RunPlan
from fedfactory.run_schema import RoundsSchema
from tests.run_plans import PLAN, blob, run_plan

ROOT = Path(__file__).parents[2]
ASYNC = {"mode": "async", "quorum": 1}
RANDOM = {"select": "random", "per_round": 2}
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"rounds": 0}, "rounds.number=0: expected a whole number from 1"),
    ({"rounds": 1_000_001}, "rounds.number=1000001"),
    ({"checkpoints": 0}, "checkpoints=0"),
    ({"seed": -1}, "seed=-1: expected a whole number from 0"),
    ({"sites": ()}, "sites=[]: expected at least one"),
    ({"sites": ("a", "a", "b")}, "sites=[a,a,b]: expected at least one, each name once"),
    ({"sites": ("b", "a")}, "in alphabetical order"),
    ({"max_examples": {"vega": 1}}, "unknown site 'max_examples.vega'"),
    ({"max_examples": {"lumi": 0}}, "max_examples.lumi=0: expected a whole number from 1 to 2^53"),
    ({"max_update_norm_l2": math.nan}, "max_update_norm_l2=nan: expected a number above 0"),
    ({"quorum": 0}, "rounds.quorum=0: expected a whole number from 1 to 3 (sites)"),
    ({"quorum": 4}, "rounds.quorum=4"),
    ({"deadline_s": 0.0}, "rounds.deadline_s=0.0: expected seconds above 0"),
    ({"deadline_s": math.inf}, "rounds.deadline_s=inf"),
    ({"deadline_s": math.nan}, "rounds.deadline_s=nan"),
    ({"lateness_s": -1.0}, "rounds.lateness_s=-1.0: expected seconds from 0"),
    ({"retries": -1}, "rounds.retries=-1"),
    ({"retries": 101}, "rounds.retries=101: expected a whole number from 0 to 100"),
    ({"extra": 1}, "rounds.extra=1: expected 0 where all sites are asked"),
    ({**RANDOM, "extra": 2}, "rounds.extra=2: expected a whole number from 0 to 1"),
    ({"required": ("vega",)}, "unknown site in rounds.required 'vega'"),
    ({**RANDOM, "per_round": 1, "quorum": 1, "required": ("cesga", "lumi")}, "at most 1 sites"),
    ({**RANDOM, "per_round": 1}, "rounds.quorum=2: expected a whole number from 1 to 1"),
    ({**RANDOM, "per_round": 4}, "rounds.per_round=4"),
    ({**RANDOM, "per_round": 0}, "rounds.per_round=0"),
    ({"per_round": 2}, "rounds.per_round=2: expected null with rounds.select=all"),
    ({"select": "size"}, "rounds.per_round=null: expected how many sites rounds.select=size"),
    ({"buffer": 2}, "rounds.buffer=2: expected null; it is for rounds.mode=async"),
    ({**ASYNC}, "rounds.buffer=null: expected a whole number from 1 to 3 in rounds.mode=async"),
    ({**ASYNC, "buffer": 0}, "rounds.buffer=0"),
    ({**ASYNC, "buffer": 4}, "rounds.buffer=4"),
    ({**ASYNC, "buffer": 2, "quorum": 2}, "rounds.quorum=2: expected null in rounds.mode=async"),
    ({**ASYNC, **RANDOM, "buffer": 2}, "rounds.select=random: expected all in rounds.mode=async"),
    ({"patience": 0}, "evaluation.patience=0"),
    ({"min_delta": -1.0}, "evaluation.min_delta=-1.0: expected a number from 0"),
    ({"min_delta": math.nan}, "evaluation.min_delta=nan"),
    ({"patience": 2, "evaluate": False}, "evaluation.patience=2: nothing measures the models"),
    ({**ASYNC, "buffer": 2, "keep": "best"}, "evaluation.keep=best: in async mode the sites"),
]


@pytest.mark.parametrize(("changes", "told"), BROKEN, ids=str)
def test_a_plan_that_cannot_be_kept_is_never_built(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as raised:
        run_plan(**changes)
    assert told in raised.value.public_message


def test_a_plan_that_is_read_is_checked_as_one_that_is_built() -> None:
    raw = json.loads(to_json(PLAN))
    assert from_json(RunPlan, json.dumps(raw)) == PLAN
    raw["rules"]["quorum"] = 4
    with pytest.raises(FieldError, match=r"rounds\.quorum=4: expected a whole number from 1 to 3"):
        from_json(RunPlan, json.dumps(raw))
    raw["rules"] |= {"quorum": 2, "retries": 101}
    with pytest.raises(FieldError, match=r"rounds\.retries=101"):
        from_json(RunPlan, json.dumps(raw))


def test_what_can_be_kept_is_taken() -> None:
    run_plan(**RANDOM, extra=1, required=("lumi",))
    run_plan(**ASYNC, buffer=3, keep="best", central=blob(5))
    run_plan(patience=2)


# ---- docs/contributing.md: a new rounds.* option ----------------------------------------------


def test_a_new_option_touches_the_files_that_are_named_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The group's reader and the codec know no option by name, but those it converts."""
    wider = make_dataclass(
        "Wider", [("patience_s", float)], bases=(RoundRules,), frozen=True, kw_only=True
    )
    monkeypatch.setattr(run_rules, "RoundRules", wider)
    values = {**OmegaConf.load(ROOT / "conf" / "run.yaml")["rounds"], "patience_s": 2.5}
    found = run_rules.round_rules(values, ("a", "b", "c"))
    assert found.patience_s == 2.5  # type: ignore[attr-defined]
    assert encode(found)["patience_s"] == 2.5


def test_every_option_stands_in_the_files_that_are_named() -> None:
    text = (ROOT / "docs" / "contributing.md").read_text()
    section = text.split("## A new rounds.* option\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| [^|]*?`([\w/.]+)`", section, re.MULTILINE)
    assert len(named) == 4
    assert all((ROOT / name).exists() for name in named)
    options = {field.name for field in fields(RoundRules)}
    beside = {"number", "mode"}  # of the signed terms
    assert {field.name for field in fields(RoundsSchema)} == options | beside
    assert OmegaConf.load(ROOT / "conf" / "run.yaml")["rounds"].keys() == options | beside
