"""docs/policy.md says what the code does: its clauses, codes, example and egress modes."""

from __future__ import annotations

import re
from pathlib import Path

from fedfactory.contracts.refusals import REFUSALS
from site_agents.cli.main import COMMANDS
from site_agents.gates import GATES
from site_agents.policy import parse_policy
from site_agents.policy.text import render
from site_agents.policy.values import EGRESS_MODES

NEEDS = {
    "terms": "the plan",
    "order": "the order",
    "form": "a look at the data",
    "base": "the base model",
    "result": "the result",
}
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policy.md").read_text()


def table_under(heading: str) -> list[tuple[str, ...]]:
    """The rows of the first table after a line that holds `heading`."""
    lines = PAGE[PAGE.index(heading) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    return rows[2:]


def test_the_table_is_the_gates():
    expected = [
        (
            gate.name,
            gate.sentence,
            f"`{gate.clause}`" if not gate.clause.startswith("rule ") else gate.clause,
            ", ".join(f"`{code}`" for code in gate.codes),
            NEEDS[gate.needs],
        )
        for gate in GATES
    ]
    assert table_under("## Every gate") == expected


def test_every_code_that_a_site_may_answer_with_by_policy_is_explained():
    codes = set(re.findall(r"`([a-z_]+)`", PAGE)) & REFUSALS.keys()
    assert codes >= {code for gate in GATES for code in gate.codes}


def test_the_rules_that_gates_name_are_rules_of_the_privacy_page():
    rules = (ROOT / "docs" / "privacy.md").read_text()
    for gate in GATES:
        if gate.clause.startswith("rule "):
            assert f"\n| {gate.clause.removeprefix('rule ')} | " in rules, gate.name


def test_the_example_is_a_policy_as_the_agent_writes_it():
    example = PAGE.split("```yaml\n")[1].split("```")[0]
    policy = parse_policy(example, name="policy.yaml", known_zone=lambda zone: "/" in zone)
    assert render(policy) == example
    assert policy.dp_required


def test_the_egress_modes_are_all_there():
    assert [row[0] for row in table_under("## Letting results leave")] == [
        f"`{mode}`" for mode in EGRESS_MODES
    ]


def test_every_command_it_names_is_one():
    assert set(re.findall(r"site-agent ([a-z]+)", PAGE)) <= COMMANDS.keys()


def test_a_key_of_the_policy_touches_four_files_and_the_page_names_them():
    """As docs/contributing.md says of a key with a default: here of limits.plan_days."""
    product = [p for p in (ROOT / "site_agents").rglob("*.py") if "plan_days" in p.read_text()]
    docs = [ROOT / "docs" / "policy.md"]
    section = (ROOT / "docs" / "contributing.md").read_text().partition("## A new policy key")[2]
    rows = re.findall(r"^\| `([^`]+)` \|", section.partition("\n## ")[0], flags=re.MULTILINE)
    assert sorted(rows) == sorted(str(p.relative_to(ROOT)) for p in product + docs)
    assert "plan_days" in docs[0].read_text()
