"""Every rule of docs/privacy.md about what exists is cited by a test, and no test cites another."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "privacy.md").read_text()
RULES = PAGE.partition("## The rules, by number")[2].partition("\n## ")[0]
EXISTING, _, TO_COME = RULES.partition("**To come**")


def numbers(text: str) -> list[str]:
    return re.findall(r"^\| (\d+) \| \S", text, flags=re.MULTILINE)


def cited(path: Path) -> Iterator[str]:
    """Give the numbers that marks on a file's tests cite."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            for mark in function.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.rule":
                    yield from (str(ast.literal_eval(argument)) for argument in mark.args)


def test_rules_are_numbered_in_their_order() -> None:
    found = numbers(EXISTING) + numbers(TO_COME)
    assert found == [str(number) for number in range(1, len(found) + 1)]
    assert numbers(EXISTING)
    assert numbers(TO_COME)


def test_each_rule_about_what_exists_is_cited_and_no_other() -> None:
    found = {number for path in (ROOT / "tests").rglob("test_*.py") for number in cited(path)}
    assert sorted(found, key=int) == numbers(EXISTING)
