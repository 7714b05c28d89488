"""Whatever a coordinator sends, and whatever a site's policy says: only the site loosens it."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Order, TrainParameters
from fedfactory.contracts.plans import OrderEnvelope, RunTerms, SignedTerms
from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.contracts.refusals import REFUSALS
from site_agents.policy import (
    Confirmation,
    DataRule,
    Facts,
    Hours,
    OneOf,
    OperatorPin,
    Policy,
    PolicyFileError,
    Range,
    TaskRule,
    parse_policy,
)
from site_agents.policy.holds import UNBOUNDED, Holds
from site_agents.policy.pins import day_text
from site_agents.policy.text import render
from site_agents.policy.values import EGRESS_MODES, LOGS_MODES, TRAINING_KEYS
from site_agents.policy_file import load_policy
from tests.policy_judge import examine, judge
from tests.policy_orders import NOW, UNSIGNED, WITHOUT_DP, pin

KEYS = tuple(f"sha256:{digit * 64}" for digit in "abc")
NAMES = ("lead", "digits", "echo", "cesga", "r1", "../x", "a\n", "", "x" * 200, "é")
names = st.sampled_from(NAMES)
keys = st.sampled_from(KEYS)
TODAY, ENDED = day_text(NOW), day_text(NOW - 86400)
pins = st.builds(
    OperatorPin,
    key=keys,
    until=st.sampled_from((ENDED, TODAY, "9999-12-31")),
    confirmed=st.one_of(
        st.none(), st.builds(Confirmation, by=st.sampled_from(("maria", "a: b")), on=st.just(TODAY))
    ),
)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-5, 70), finite, names)
parameters = st.dictionaries(st.sampled_from(("model", "hidden", "x")), scalars, max_size=3)

trainings = st.builds(
    TrainParameters,
    local_epochs=st.integers(1, 6),
    batch_size=st.integers(1, 64),
    lr=st.floats(1e-6, 1000),
    momentum=st.floats(0, 0.99),
    proximal_mu=st.floats(0, 10),
    max_steps=st.one_of(st.none(), st.integers(1, 20)),
)
privacies = st.builds(
    PrivacyPlan,
    target_epsilon=st.floats(0.1, 20),
    noise_multiplier=st.none(),
    delta=st.sampled_from((1e-6, 1e-5, 1e-3)),
    clip_norm_l2=st.just(1.0),
    grad_sample_mode=st.just("hooks"),
    evaluation_noise_multiplier=st.one_of(st.none(), st.just(10.0)),
    evaluation_loss_clip=st.just(5.0),
)
blobs = st.builds(
    BlobRef, digest=st.just("sha256:" + "b" * 64), bytes=st.sampled_from((0, 100, 2000, 10**10))
)


@st.composite
def ranges(draw: st.DrawFn, low: float, high: float) -> Range:
    first, second = draw(st.floats(low, high)), draw(st.floats(low, high))
    return Range(min(first, second), max(first, second))


allowed = st.one_of(ranges(0, 70), st.builds(OneOf, st.tuples(scalars, scalars)))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    sources = ("scans", "tables")
    per_run = draw(st.floats(0.5, 10))
    return Policy(
        coordinators=draw(st.dictionaries(st.sampled_from(("lead", "x")), keys, max_size=2)),
        operators=draw(st.dictionaries(st.sampled_from(("ada", "x")), pins, max_size=2)),
        data={n: DataRule(lineage=n, public_size=100, unit="row") for n in sources},
        tasks=draw(
            st.dictionaries(
                st.sampled_from(("digits", "echo")),
                st.builds(
                    TaskRule,
                    source=st.sampled_from(sources),
                    parameters=st.dictionaries(
                        st.sampled_from(("model", "hidden")), allowed, max_size=2
                    ),
                ),
            )
        ),
        training=draw(st.dictionaries(st.sampled_from(TRAINING_KEYS), ranges(0, 70), max_size=2)),
        strategies=draw(st.sampled_from((None, ("fedavg",), ("flwr.FedAdam", "fedprox")))),
        without_dp=draw(
            st.one_of(
                st.none(),
                st.builds(
                    replace,
                    st.just(WITHOUT_DP),
                    min_examples=st.integers(1, 200),
                    min_local_steps=st.integers(1, 20),
                ),
            )
        ),
        epsilon_per_run=per_run,
        epsilon_per_lineage=per_run + draw(st.floats(0, 10)),
        delta=draw(st.sampled_from((1e-6, 1e-5, 1e-3))),
        max_evaluations=draw(st.integers(0, 10)),
        metrics=draw(st.dictionaries(st.sampled_from(("loss", "a b")), st.floats(0, 1))),
        rounds=draw(st.integers(1, 10)),
        gpu_hours_per_run=draw(st.floats(0.1, 5)),
        hours=draw(st.one_of(st.none(), windows())),
        max_model_bytes=draw(st.integers(1, 5000)),
        max_base_abs=draw(st.dictionaries(st.sampled_from(("*", "fc.*")), st.floats(0.1, 10))),
        egress=draw(st.sampled_from(EGRESS_MODES)),
        logs=draw(st.sampled_from(LOGS_MODES)),
        holds=draw(
            st.builds(
                Holds,
                plan_days=st.floats(0.01, 366),
                silent_days=st.floats(0.01, 366),
                hold_share=st.floats(0.01, 1),
                unbounded_lineage=st.sampled_from(UNBOUNDED),
            )
        ),
    )


@st.composite
def windows(draw: st.DrawFn) -> Hours:
    start, end = draw(st.integers(0, 1439)), draw(st.integers(1, 1440))
    assume(start != end)
    return Hours(start=start, end=end, time_zone=draw(st.sampled_from(("UTC", "Europe/Paris"))))


facts = st.builds(
    Facts,
    now=st.sampled_from((NOW, NOW + 100)),
    local_minute=st.integers(0, 1439),
    coordinator_key=st.sampled_from(("", *KEYS)),
    operator_key=st.sampled_from(("", *KEYS)),
    revoked=st.frozensets(st.sampled_from(KEYS), max_size=2),
    site=st.sampled_from(("cesga", "lumi")),
    train_examples=st.one_of(st.none(), st.integers(0, 300)),
    evaluate_examples=st.one_of(st.none(), st.integers(0, 300)),
    gpu_hours_of_run=st.floats(0, 6),
    finished=st.booleans(),
    base=st.one_of(
        st.none(), st.dictionaries(st.sampled_from(("fc.w", "bn")), st.floats(0), max_size=2)
    ),
)


@st.composite
def sendings(draw: st.DrawFn) -> OrderEnvelope:
    """Any order under any plan: often one that fits its plan, but for a few fields."""
    terms = RunTerms(
        coordinator=draw(names),
        run_id=draw(names),
        sites=draw(st.sampled_from(((), ("cesga",), ("cesga", "lumi")))),
        task=draw(names),
        task_parameters=draw(parameters),
        initial=draw(blobs),
        strategy=draw(st.sampled_from(("fedavg", "custom"))),
        strategy_options=draw(st.sampled_from(({}, {"_target_": "flwr.FedAdam"}))),
        mode=draw(st.sampled_from(("sync", "async"))),
        training=draw(trainings),
        rounds=draw(st.integers(-1, 12)),
        evaluate=draw(st.booleans()),
        privacy=draw(st.one_of(st.none(), privacies)),
        max_model_bytes=draw(st.integers(0, 5000)),
        max_update_norm_l2=None,
        nonce="n",
        not_after=draw(st.sampled_from((NOW, NOW + 1000))),
    )
    kind = draw(st.sampled_from(("train", "evaluate")))
    fitting: dict[str, Any] = {
        "coordinator": terms.coordinator,
        "run_id": terms.run_id,
        "round": draw(st.integers(-1, 12)),
        "kind": kind,
        "site": "cesga",
        "task": terms.task,
        "task_parameters": terms.task_parameters,
        "training": terms.training if kind == "train" else None,
        "base": draw(blobs),
        "seed": 1,
        "privacy": terms.privacy,
        "terms_digest": digest_of(terms),
    }
    others = {
        "coordinator": names,
        "run_id": names,
        "site": names,
        "task": names,
        "task_parameters": parameters,
        "training": st.one_of(st.none(), trainings),
        "privacy": st.one_of(st.none(), privacies),
        "terms_digest": names,
    }
    for name in draw(st.lists(st.sampled_from(sorted(others)), max_size=2)):
        fitting[name] = draw(others[name])
    return OrderEnvelope(
        order=Order(**fitting),
        signed=SignedTerms(terms=terms, signature=UNSIGNED),
        number=draw(st.integers()),
        expires_at=draw(st.sampled_from((NOW, NOW + 1000))),
        receipt=None,
    )


@st.composite
def allowed_cases(draw: st.DrawFn) -> tuple[Policy, OrderEnvelope, Facts]:
    """A policy that was written for the very order, so that it is mostly allowed."""
    sending, policy, known = draw(sendings()), draw(policies()), draw(facts)
    order, terms = sending.order, sending.signed.terms
    terms = replace(
        terms,
        coordinator="lead",
        run_id="r1",
        sites=("cesga",),
        task="digits",
        rounds=policy.rounds,
        evaluate=True,
        training=replace(terms.training, max_steps=None),
        privacy=terms.privacy
        and replace(
            terms.privacy, delta=draw(st.sampled_from((policy.delta, policy.delta / 10, 1e-3)))
        ),
        not_after=NOW + 1000,
        max_model_bytes=5000,
        initial=replace(terms.initial, bytes=1),
    )
    order = replace(
        order,
        coordinator="lead",
        run_id="r1",
        site="cesga",
        task="digits",
        round=1,
        task_parameters=terms.task_parameters,
        training=terms.training if order.kind == "train" else None,
        privacy=terms.privacy,
        base=draw(st.sampled_from((terms.initial, replace(order.base, bytes=1)))),
        terms_digest=digest_of(terms),
    )
    policy = replace(
        policy,
        coordinators={"lead": KEYS[0]},
        operators={"ada": pin(KEYS[1])},
        tasks={"digits": TaskRule(source="scans", parameters={})},
        training={},
        without_dp=replace(
            WITHOUT_DP,
            min_examples=draw(st.sampled_from((1, 101))),
            min_local_steps=draw(st.sampled_from((1, 50))),
        ),
        epsilon_per_run=draw(st.sampled_from((1.0, 5.0, 50.0))),
        epsilon_per_lineage=60.0,
        max_evaluations=10,
        gpu_hours_per_run=10.0,
        hours=None,
    )
    known = replace(
        known, now=NOW, coordinator_key=KEYS[0], operator_key=KEYS[1], site="cesga",
        train_examples=100, evaluate_examples=100, revoked=known.revoked - {KEYS[1]},
    )  # fmt: skip
    return (
        policy,
        replace(sending, order=order, signed=SignedTerms(terms=terms, signature=UNSIGNED)),
        known,
    )


cases = st.one_of(allowed_cases(), st.tuples(policies(), sendings(), facts), allowed_cases())


@given(cases)
@settings(max_examples=150, deadline=None)
def test_the_judge_never_raises_and_refuses_whatever_any_clause_finds_against(case):
    policy, sending, known = case
    verdict = judge(policy, sending, known)
    against = [clause for clause, finding in examine(policy, sending, known) if finding]
    assert (verdict.code is None) == (not against)
    if against:
        assert verdict.code == against[0].code
        assert verdict.code in REFUSALS
    assert verdict.finding.isprintable()


@given(cases)
@settings(max_examples=300, deadline=None)
def test_what_is_allowed_is_within_policy_and_plan_whatever_the_coordinator_wrote(case):
    """Law 2, told again from the policy's side: each line would be a way around it."""
    policy, sending, known = case
    if judge(policy, sending, known).code is not None:
        return
    order, terms = sending.order, sending.signed.terms
    assert policy.coordinators[order.coordinator] == known.coordinator_key
    assert known.operator_key not in known.revoked
    assert any(
        one.key == known.operator_key and day_text(known.now) <= one.until
        for one in policy.operators.values()
    )
    assert order.terms_digest == digest_of(terms)
    assert known.now <= min(terms.not_after, sending.expires_at)
    assert order.site == known.site
    assert order.site in terms.sites
    assert 1 <= order.round <= terms.rounds <= policy.rounds
    assert order.base.bytes <= min(terms.max_model_bytes, policy.max_model_bytes)
    assert order.privacy == terms.privacy
    assert policy.strategies is None or terms.strategy_name in policy.strategies
    if (order.kind, order.round, terms.mode) == ("train", 1, "sync"):
        assert order.base == terms.initial
    if order.training is not None:
        assert order.training.lr <= terms.training.lr
        assert order.training.momentum <= terms.training.momentum
    for tensor, largest in (known.base or {}).items():
        bounds = [b for p, b in policy.max_base_abs.items() if p in ("*", tensor[:3] + "*")]
        assert largest <= min(bounds, default=sys.float_info.max)
    if not known.finished:
        assert policy.hours is None or policy.hours.holds(known.local_minute)
        assert known.gpu_hours_of_run < policy.gpu_hours_per_run
    rule = policy.tasks[order.task]
    assert all(a.accepts(order.task_parameters.get(n)) for n, a in rule.parameters.items())
    if order.training is not None:
        assert order.training.local_epochs <= terms.training.local_epochs
        assert order.training.batch_size == terms.training.batch_size
        for name, limits in policy.training.items():
            assert limits.low <= getattr(order.training, name) <= limits.high
    if order.privacy is None:
        assert policy.without_dp is not None
        count = known.train_examples if order.kind == "train" else known.evaluate_examples
        assert count is None or count >= policy.without_dp.min_examples
    else:
        assert order.privacy.delta <= policy.delta
        assert order.privacy.target_epsilon <= policy.epsilon_per_run


WIDER = {
    "tasks.parameters": "tasks",
    "privacy.min_examples": "privacy.dp",
    "privacy.min_local_steps": "privacy.dp",
}


def without(mapping: Any, name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


@st.composite
def restrictions(draw: st.DrawFn, policy: Policy) -> Policy:
    """The policy with one thing less allowed."""
    options: list[dict[str, Any]] = [
        {"coordinators": without(policy.coordinators, "lead")},
        {"operators": without(policy.operators, "ada")},
        {"operators": {name: replace(p, until=ENDED) for name, p in policy.operators.items()}},
        {"tasks": without(policy.tasks, "digits")},
        {"without_dp": None},
        {"epsilon_per_run": policy.epsilon_per_run / 2},
        {"delta": policy.delta / 10},
        {"max_evaluations": policy.max_evaluations // 2},
        {"rounds": max(1, policy.rounds // 2)},
        {"gpu_hours_per_run": policy.gpu_hours_per_run / 3},
        {"max_model_bytes": max(1, policy.max_model_bytes // 2)},
    ]
    if policy.hours is None:
        options.append({"hours": draw(windows())})
    if policy.without_dp is not None:
        rule = policy.without_dp
        options.append({"without_dp": replace(rule, min_examples=rule.min_examples + 150)})
        options.append({"without_dp": replace(rule, min_local_steps=rule.min_local_steps + 9)})
    for name in TRAINING_KEYS:
        narrow = draw(ranges(0, 70))
        if (old := policy.training.get(name)) is not None:
            middle = old.low + (old.high - old.low) / 2
            narrow = Range(old.low, middle) if math.isfinite(middle) else old
        options.append({"training": {**policy.training, name: narrow}})
    for task, rule in policy.tasks.items():
        limited = {"x": draw(allowed), **rule.parameters}
        options.append({"tasks": {**policy.tasks, task: replace(rule, parameters=limited)}})
    return replace(policy, **draw(st.sampled_from(options)))


@given(cases, st.data())
@settings(max_examples=150, deadline=None)
def test_a_restriction_never_turns_a_refusal_into_an_acceptance(case, data):
    policy, sending, known = case
    tighter = data.draw(restrictions(policy))
    before, after = judge(policy, sending, known), judge(tighter, sending, known)
    if before.code is not None:
        assert after.code is not None
    # More than that: no clause is silenced, unless what it is about is not allowed at all any more.
    was = {c.clause for c, found in examine(policy, sending, known) if found}
    now = {c.clause for c, found in examine(tighter, sending, known) if found}
    assert all(key in now or WIDER.get(key) in now for key in was)


@given(cases, st.sets(keys))
@settings(max_examples=150, deadline=None)
def test_a_revocation_never_turns_a_refusal_into_an_acceptance(case, more):
    policy, sending, known = case
    later = replace(known, revoked=known.revoked | more)
    after = judge(policy, sending, later)
    if judge(policy, sending, known).code is not None:
        assert after.code is not None
    if known.operator_key in more:
        assert after.code == "not_authorised"


def test_the_cases_reach_both_verdicts():
    """The properties above would hold for nothing if all were refused."""
    verdicts: set[bool] = set()

    @given(cases)
    @settings(
        max_examples=800,  # which cases come depends on the modules that are loaded
        phases=(Phase.generate,),
        derandomize=True,
        database=None,
        deadline=None,
    )
    def collect(case):
        verdicts.add(judge(*case).code is None)

    collect()
    assert verdicts == {True, False}


@given(policies())
@settings(max_examples=80, deadline=None)
def test_what_is_written_is_read_back_as_the_same_policy(policy):
    text = render(policy)
    again = parse_policy(text, name="policy.yaml", known_zone=lambda _: True)
    assert again == policy
    assert again.version == policy.version
    assert render(again) == text


@given(policies(), st.data())
@settings(max_examples=120, deadline=None)
def test_a_damaged_file_is_read_as_itself_or_not_at_all(tmp_path_factory, policy, data):
    """Fail closed: a file that was cut, or has a line twice or gone, never raises anything else."""
    lines = render(policy).splitlines()
    index = data.draw(st.integers(0, len(lines) - 1))
    cut = data.draw(st.sampled_from(("drop", "twice", "truncate", "indent", "garble")))
    match cut:
        case "drop":
            del lines[index]
        case "twice":
            lines.insert(index, lines[index])
        case "truncate":
            lines = [*lines[:index], lines[index][: len(lines[index]) // 2]]
        case "indent":
            lines[index] = " " + lines[index]
        case _:
            lines[index] = lines[index][::-1]
    path = tmp_path_factory.getbasetemp() / "policy.yaml"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    try:
        found = load_policy(path)
    except PolicyFileError as error:
        assert str(path) in str(error)  # noqa: PT017 - the other branch is right as well
    else:
        assert isinstance(found, Policy)
