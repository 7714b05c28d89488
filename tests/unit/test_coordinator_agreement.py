"""What is wrong with a submission by itself, and whether a run can begin without some sites."""

import pytest

from fedfactory.contracts.errors import FedfactoryError, UsageError
from fedfactory.coordinator.desk.agreement import (
    Limits,
    can_begin,
    check_agreement,
    why_not_resumed,
)
from fedfactory.wire.operations import Finding
from tests.policy_orders import PRIVACY
from tests.unit.coordinator_submissions import COORDINATOR, changed, plan_of

LIMITS = Limits(max_rounds=100, max_sites=3, max_model_bytes=10_000)


def check(found):
    check_agreement(found, coordinator=COORDINATOR, limits=LIMITS, now=1000.0)


def test_an_honest_submission_holds():
    check(plan_of())


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (lambda: plan_of(coordinator="other"), "signed for the coordinator 'other'"),
        (lambda: plan_of(not_after=999.0), "time is over"),
        (lambda: plan_of(nonce="xyz"), "nonce"),
        (lambda: plan_of(max_model_bytes=10), "max_model_bytes"),
        (lambda: plan_of("../up"), "run_id"),
        (lambda: plan_of(".hidden"), "run_id"),
        (lambda: plan_of(rounds=101), "rounds=101"),
        (lambda: plan_of(sites=("a", "b", "c", "d")), "number of sites=4"),
        (lambda: plan_of(sites=("a", "b/c")), "cannot be a name"),
        (
            lambda: plan_of(central=changed(plan_of().terms.initial, bytes=20_000)),
            "public data set's bytes",
        ),
    ],
)
def test_what_does_not_agree_or_is_out_of_bounds_is_named(found, told):
    with pytest.raises(FedfactoryError) as raised:
        check(found())
    assert told in raised.value.public_message


@pytest.mark.parametrize(
    "found",
    [
        lambda: plan_of(task_parameters={"_target_": "os.system"}),
        lambda: plan_of(task_parameters={"_partial_": True}),
        lambda: plan_of(strategy_options={"_recursive_": False}),
        lambda: plan_of(strategy_options={"_args_": ("a",)}),
    ],
)
def test_a_key_that_would_make_an_object_is_refused_wherever_it_stands(found):
    with pytest.raises(UsageError, match=r"only strategy._target_ may name a class"):
        check(found())


def test_the_strategy_s_own_class_is_judged_elsewhere():
    check(plan_of(strategy_options={"_target_": "os.system"}))


def finding(site):
    return Finding(site=site, code="offline", sentence="it is away")


def test_a_run_begins_without_sites_that_it_can_do_without():
    assert can_begin(plan_of(), []) is None
    assert can_begin(plan_of(), [finding("lumi")]) is None


def test_a_run_without_its_quorum_or_a_required_site_does_not_begin():
    reason = can_begin(plan_of(), [finding("lumi"), finding("cesga")])
    assert reason == "1 of 3 sites can take part now, and the quorum is 2"
    demanding = plan_of(required=("lumi",))
    assert (
        can_begin(demanding, [finding("lumi")])
        == "lumi (offline): required, and cannot take part now"
    )


@pytest.mark.parametrize("status", ["suspended", "failed", "stopped"])
def test_a_run_that_ended_early_resumes(status):
    assert why_not_resumed(plan_of(), status, 1000.0) is None


@pytest.mark.parametrize(
    ("found", "status", "told"),
    [
        (plan_of(), "completed", "has completed: only suspended, failed and stopped ones"),
        (
            plan_of(not_after=999.0),
            "failed",
            "has ended, and sites would refuse it: start a new",
        ),
        (
            plan_of(privacy=PRIVACY),
            "stopped",
            "back the privacy budget that they held for it: start a new run from its model (model=",
        ),
    ],
)
def test_why_a_run_does_not_resume(found, status, told):
    assert told in why_not_resumed(found, status, 1000.0)


def test_a_private_run_that_failed_resumes_with_what_its_sites_hold():
    assert why_not_resumed(plan_of(privacy=PRIVACY), "failed", 1000.0) is None
