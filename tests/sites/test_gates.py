"""One table: for every gate the agent, the question before a run and `policy explain` say the same."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.refusals import REFUSALS
from fedfactory.contracts.updates import Reply
from site_agents import gates
from site_agents.cli.main import main
from site_agents.failures import read_failures
from site_agents.gates import BEFORE_A_RUN, GATES, WHO, Gate
from site_agents.unauthorised import CODES
from tests.sites.asking import about_plan, questions_of
from tests.sites.gate_faults import (
    FAULTS,
    MODES,
    PLACE,
    Asking,
    Fault,
    Mode,
    can_be_together,
    spoiled,
)
from tests.sites.rig import Site

Said = tuple[str, str] | None  # gate and code
OF_A_RESULT = ("operator, again",)  # met by new work once it is done: nobody else can know
ALONE = [(mode, gate.name) for gate in GATES for mode in MODES if mode in FAULTS[gate.name].modes]


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the gates that refused, in order."""
    found: list[str] = []
    plain = gates.refusal

    def noted(gate: Gate, against: object) -> object:
        found.append(gate.name)
        return plain(gate, against)

    monkeypatch.setattr(gates, "refusal", noted)
    return found


def prepared(make_site: Callable[..., Site], mode: Mode, names: Sequence[str]) -> Asking:
    """A site with the faults of these gates, the earliest first."""
    faults = [FAULTS[name] for name in sorted(names, key=PLACE.__getitem__)]
    asking = Asking(make_site(), mode, faults)
    asking.site.write_policy(**asking.policy(()))
    for fault in faults:
        fault.before(asking)
    asking.site.write_policy(**asking.policy(faults))
    for fault in faults:
        fault.then(asking.site)
    return asking


def by_agent(asking: Asking, met: list[str]) -> Said:
    met.clear()
    reply = asking.site.answer(asking.delivery(asking.faults))
    assert isinstance(reply, Reply)
    return (met[0], reply.refusal.code) if reply.refusal is not None else None


def by_question(asking: Asking, met: list[str]) -> Said:
    met.clear()
    key = next((fault.key for fault in asking.faults if fault.key), None)
    signs = next((fault.operator for fault in asking.faults if fault.operator), None)
    hub = asking.site.coordinator
    text = about_plan(
        asking.site,
        asking.terms(asking.faults),
        key=key,
        operator=signs(hub) if signs else None,
    )
    if any(fault.spoiled for fault in asking.faults):
        text = spoiled(text)
    answer = questions_of(asking.site).answer(text)
    assert answer is not None
    assert answer.preflight is not None
    return (met[0], answer.preflight.code) if answer.preflight.code else None


def by_explain(asking: Asking) -> tuple[Said, dict[str, str]]:
    path, out = asking.site.folder / "order.json", io.StringIO()
    path.write_text(asking.delivery(asking.faults))
    with contextlib.redirect_stdout(out):
        status = main(["policy", "explain", "--home", str(asking.site.home), "--json", str(path)])
    document = json.loads(out.getvalue())
    outcomes = {one["gate"]: one["outcome"] for one in document["gates"]}
    assert list(outcomes) == [gate.name for gate in GATES], "each gate has its verdict"
    decides = [one for one in document["gates"] if one["outcome"] == "REFUSES"]
    assert (status, document["refused"]) == ((1, decides[0]["code"]) if decides else (0, None))
    return (decides[0]["gate"], decides[0]["code"]) if decides else None, outcomes


def said(name: str | None) -> Said:
    gate = next((gate for gate in GATES if gate.name == name), None)
    return None if gate is None else (gate.name, gate.code)


def expected(names: Sequence[str]) -> tuple[Said, Said, Said]:
    """What agent, question and explain say of the faults of these gates, earliest first."""
    needs = {gate.name: gate.needs for gate in GATES}
    asked = (FAULTS[n].question if FAULTS[n].question != "" else n for n in names)
    shown = (n for n in names if needs[n] not in ("form", "base") and n not in OF_A_RESULT)
    return (
        said(names[0]),
        said(min((n for n in asked if n), key=PLACE.__getitem__, default=None)),
        said(next(shown, None)),
    )


def all_three(asking: Asking, met: list[str]) -> tuple[Said, Said, Said]:
    """Ask for nothing first, so that the agent finds what the others found."""
    question, (explained, _) = by_question(asking, met), by_explain(asking)
    return by_agent(asking, met), question, explained


@pytest.fixture
def unpaid(make_site: Callable[..., Site]) -> Iterator[Callable[..., Asking]]:
    """Prepares sites; what is asked after that costs nothing, and no record is touched."""
    made: list[tuple[Asking, list[str], tuple[int, int, str]]] = []

    def books(asking: Asking) -> tuple[int, int, str]:
        site = asking.site
        return site.steps_spent(), site.executions(), str(read_failures(site.home).counts)

    def prepare(mode: Mode, names: list[str]) -> Asking:
        asking = prepared(make_site, mode, names)
        made.append((asking, names, books(asking)))
        return asking

    yield prepare
    for asking, names, before in made:
        if not set(names) & set(OF_A_RESULT):
            assert books(asking) == before
        if asking.mode == "private":
            assert asking.site.executor.described == 0, "no record is counted, unpaid"


# ---- the table ---------------------------------------------------------------------------------


def test_every_gate_has_a_fault_and_no_fault_is_of_no_gate() -> None:
    names = [gate.name for gate in GATES]
    assert list(FAULTS) == names, "a new gate has its case in gate_faults.py, in the table's order"
    assert len(set(names)) == len(names)
    assert {mode for name in names for mode in FAULTS[name].modes} == set(MODES)


def test_every_row_says_what_it_is() -> None:
    for gate in GATES:
        assert gate.sentence.endswith("."), gate.name
        assert set(gate.codes) <= REFUSALS.keys()
        assert len(set(gate.codes)) == len(gate.codes)
        assert gate.clause


@pytest.mark.rule("43")
def test_who_asks_comes_first_and_alone_is_counted() -> None:
    """A refusal before the keys are known is counted; all later ones are recorded, one by one."""
    firsts = [gate.part == WHO for gate in GATES]
    assert firsts == sorted(firsts, reverse=True)
    assert all(set(gate.codes) <= CODES for gate in GATES if gate.part == WHO)
    later = [gate.name for gate in GATES if gate.part != WHO and set(gate.codes) & CODES]
    assert later == list(OF_A_RESULT)


@pytest.mark.rule("9")
@pytest.mark.rule("27")
def test_the_budget_is_the_last_gate_before_the_reservation() -> None:
    names = [gate.name for gate in GATES]
    before = names[: names.index("privacy budget")]
    assert all(gate.needs != "result" for gate in GATES if gate.name in before)
    after = names[names.index("privacy budget") + 1 :]
    assert all(gate.needs == "result" for gate in GATES if gate.name in after)
    assert [gate.name for gate in GATES if gate.again] == [
        "list of revoked operators", "known operator", "time to answer", "kill switch",
        "failed work", "privacy budget",
    ]  # fmt: skip


def test_a_question_meets_nothing_that_needs_an_order_a_model_or_a_result() -> None:
    assert {gate.needs for gate in BEFORE_A_RUN} == {"terms", "form"}
    assert [gate.name for gate in BEFORE_A_RUN] == [
        gate.name for gate in GATES if gate.needs in ("terms", "form")
    ]


# ---- one fault ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_nothing_wrong_is_nothing_said(unpaid, met: list[str], mode: Mode) -> None:
    asking = unpaid(mode, [])
    assert by_question(asking, met) is None
    found, outcomes = by_explain(asking)
    assert found is None
    assert set(outcomes.values()) == {"passes", "not known", "not asked"}


@pytest.mark.parametrize(("mode", "name"), ALONE, ids=[f"{m}-{n}" for m, n in ALONE])
@pytest.mark.rule("15")
@pytest.mark.rule("27")
def test_one_fault_is_told_alike(
    unpaid: Callable[..., Asking], met: list[str], mode: Mode, name: str
) -> None:
    asking = unpaid(mode, [name])
    if name not in OF_A_RESULT:
        recorded = asking.site.home / "audit" / "chain.jsonl"
        before = len(recorded.read_bytes().splitlines())
        assert all_three(asking, met) == expected([name])
        counted = said(name)[1] in CODES
        after = len(recorded.read_bytes().splitlines())
        if name != "ledger and audit chain":
            # The question's answer and the order's refusal, or neither.
            assert after - before == (0 if counted else 2)
    else:
        assert all_three(asking, met) == expected([name])


@pytest.mark.parametrize(("mode", "name"), ALONE, ids=[f"{m}-{n}" for m, n in ALONE])
@pytest.mark.rule("40")
def test_with_a_cut_audit_chain_the_earlier_of_both_is_told(
    unpaid: Callable[..., Asking], met: list[str], mode: Mode, name: str
) -> None:
    if name in OF_A_RESULT:
        pytest.skip("on such books no work is begun")
    cut = "ledger and audit chain"
    asking = unpaid(mode, [name, cut] if PLACE[name] < PLACE[cut] else [cut, name])
    assert all_three(asking, met) == expected(sorted({name, cut}, key=PLACE.__getitem__))


# ---- two faults --------------------------------------------------------------------------------


def pairs() -> list[tuple[Mode, str, str]]:
    """Each gate with the next one, and with one further on, under privacy where both can be."""
    found = {}
    for place, name in enumerate(FAULTS):
        after = [
            (mode, name, other)
            for other in list(FAULTS)[place + 1 :]
            for mode in MODES
            if other not in OF_A_RESULT and name not in OF_A_RESULT
            if mode in FAULTS[name].modes and mode in FAULTS[other].modes
            if can_be_together(name, other)
        ]
        found |= dict.fromkeys((*after[:1], *after[17:18]))
    return list(found)


@pytest.mark.parametrize(("mode", "first", "second"), pairs())
def test_of_two_faults_the_earlier_gates_is_told(
    unpaid: Callable[..., Asking], met: list[str], mode: Mode, first: str, second: str
) -> None:
    asking = unpaid(mode, [first, second])
    assert all_three(asking, met) == expected([first, second])


# ---- where the three once differed -------------------------------------------------------------


def test_another_order_for_finished_work_is_a_conflict_at_any_hour(
    make_site: Callable[..., Site], met: list[str]
) -> None:
    asking = Asking(make_site(), "private")
    assert asking.well().update is not None
    asking.site.write_policy(**FAULTS["hour of the day"].policy(asking.site))
    other = Fault(order=lambda mode: {"seed": 2})
    asking.faults = [other]
    conflict = said("one order for a round")
    assert by_explain(asking)[0] == conflict
    assert by_agent(asking, met) == conflict


@pytest.mark.parametrize("what", ["receipts", "second place", "ledger"])
@pytest.mark.rule("40")
def test_other_records_that_are_damaged_are_told_alike(
    make_site: Callable[..., Site], met: list[str], what: str
) -> None:
    asking = Asking(make_site(), "open")
    site = asking.site
    site.write_policy(**asking.policy(()))
    assert asking.well().update is not None
    if what == "receipts":
        (site.home / "receipts.json").write_text("{")
    elif what == "ledger":
        with sqlite3.connect(site.home / "ledger.sqlite") as database:
            (table,) = database.execute(
                "select name from sqlite_master where type = 'table' and sql like '%body%'"
            ).fetchone()
            database.execute(f"delete from {table}")
        database.close()
    else:
        place = site.folder / "anchors"
        ahead = replace(site.books.anchor(), audit_length=99)
        place.write_text(to_json(ahead) + "\n")
        with (site.home / "agent.yaml").open("a") as agent:
            agent.write(f"second_place: {place}\n")
        site.restart()
    asking.faults = [Fault(order=lambda mode: {"round": 2})]
    broken = said("ledger and audit chain")
    assert all_three(asking, met) == (broken, broken, broken)
