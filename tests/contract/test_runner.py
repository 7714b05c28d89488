"""The runner over the real journal, link, gateway and store: a run survives any death of its."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.coordinator.aggregating.aggregation import StreamingAggregation
from fedfactory.coordinator.run_settings import CENTRAL
from fedfactory.coordinator.running import runner
from fedfactory.coordinator.running.journal import Journal
from fedfactory.coordinator.running.standing import Standing
from fedfactory.rounds import history
from fedfactory.rounds.events import (
    CentralMeasured,
    CheckpointLost,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    RunReopened,
    RunResumed,
    SiteLeft,
    StopRequested,
    UpdateLost,
)
from fedfactory.rounds.machine import RunState, step
from strategies import make_strategy
from tests.contract.runner_rig import SITES, TRAINING, Coordinator, KillAt, Killed, ref_of
from tests.patience import prompt

FLOWER = "flwr.serverapp.strategy."
STRATEGIES = {
    "fedavg": {"strategy": "fedavg", "strategy_options": {"weighting": "examples"}},
    "FedAdam": {"strategy": "custom", "strategy_options": {"_target_": f"{FLOWER}FedAdam"}},
    "FedMedian": {"strategy": "custom", "strategy_options": {"_target_": f"{FLOWER}FedMedian"}},
}
ASYNC = {
    "strategy": "fedbuff",
    "strategy_options": {"server_lr": 0.7},
    "mode": "async",
    "buffer": 2,
    "quorum": 1,
}


@pytest.fixture
def made(tmp_path):
    def make(name="home", **changes):
        (tmp_path / name).mkdir()
        return Coordinator(tmp_path / name, **changes)

    return make


def summary_of(coordinator):
    path = coordinator.folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def to_the_end(coordinator, *, gateway_dies=False, most=6):
    """Start ServerApps until one ends the run; return how many were needed."""
    for number in range(1, most + 1):
        try:
            coordinator.run()
        except Killed:
            if gateway_dies:
                coordinator.start_gateway()
            continue
        assert summary_of(coordinator) is not None
        if gateway_dies:
            coordinator.store.sweep()  # as the daemon does: a new gateway knows no holds of before
        return number
    raise AssertionError("the run never ended")


def counted(events):
    """The accepted updates that the machine counts: (site, order's round)."""
    state, found = RunState.new(), []
    for event in events:
        if (
            isinstance(event, ReplyAccepted)
            and event.kind == "train"
            and state.awaits(event.round, event.kind, event.site)
        ):
            found.append((event.site, event.round))
        state, _ = step(state, event)
    return found


def left_behind(coordinator):
    """What lies in the store and among the models at the end."""
    updates = {path.name for path in coordinator.store.root.iterdir() if path.is_file()}
    updates &= {digest.removeprefix("sha256:") for digest in coordinator.sites.files}
    models = [path for path in (coordinator.folder / "models").iterdir() if path.is_file()]
    return updates, len(models)


def metrics_of(coordinator):
    lines = (coordinator.folder / "metrics.jsonl").read_text().splitlines()
    return [(found["round"], found["metrics"]) for found in map(json.loads, lines)]


def test_an_undisturbed_run_leaves_models_metrics_and_a_summary_and_no_update(made):
    coordinator = made(rounds=3)
    coordinator.run()
    summary = summary_of(coordinator)
    assert (summary["status"], len(summary["rounds"])) == ("completed", 3)
    final = summary["model"]
    assert ref_of(coordinator.folder / final["file"]).digest == final["digest"]
    assert [number for number, _ in metrics_of(coordinator)] == [1, 2, 3]
    assert left_behind(coordinator) == (set(), 2)  # the two newest: checkpoints=2
    assert len(counted(coordinator.events())) == 9


def test_an_event_is_stepped_once(made, monkeypatch):
    stepped = []

    def counting(state, event):
        stepped.append(event)
        return step(state, event)

    monkeypatch.setattr(history, "step", counting)
    coordinator = made(rounds=1)
    coordinator.run()
    assert stepped == coordinator.events()


# ---- the walk over every write of the journal -----------------------------------------------


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Every reply is a commit of its own: the most writes that a run can have."""
    monkeypatch.setattr(runner, "MAX_AT_ONCE", 1)


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("name", STRATEGIES)
def test_dying_at_any_write_changes_no_bit_of_the_model(made, name):
    undisturbed = made("undisturbed", rounds=2, **STRATEGIES[name])
    with pytest.MonkeyPatch.context() as patched:
        watch = KillAt(patched, -1, after=False)
        undisturbed.run()
    expected = summary_of(undisturbed)
    # RunStarted and orders; then each answer, the last of a phase with what comes of it
    assert watch.writes == 1 + 2 * (3 + 3)
    for write in range(watch.writes):
        for after in (False, True):
            where = f"write {write}, {'after' if after else 'before'}"
            coordinator = made(f"{write}-{after}", rounds=2, **STRATEGIES[name])
            with pytest.MonkeyPatch.context() as patched:
                KillAt(patched, write, after=after)
                assert to_the_end(coordinator, gateway_dies=write % 2 == 1) == 2, where
            found = summary_of(coordinator)
            assert found["model"]["digest"] == expected["model"]["digest"], where
            assert found["status"] == "completed", where
            assert sorted(counted(coordinator.events())) == sorted(
                (site, number) for site in SITES for number in (1, 2)
            ), where
            assert coordinator.sites.done.keys() == undisturbed.sites.done.keys(), where
            assert metrics_of(coordinator) == metrics_of(undisturbed), where
            assert left_behind(coordinator) == left_behind(undisturbed), where


def recomputed(coordinator):
    """The models that the journal's updates make, by an aggregation of its own: the oracle."""
    events = coordinator.events()
    strategy = make_strategy("fedbuff", ASYNC["strategy_options"])
    state, models, used = RunState.new(), [], Counter()
    base = coordinator.home / "oracle-base"
    coordinator.sites.model(base)
    for event in events:
        if isinstance(event, ModelAggregated):
            taken = state.taking
            answers = {(w.answer.site, w.answer.round): w for w in state.async_.waiting}
            aggregation = StreamingAggregation(strategy, training=TRAINING)
            aggregation.restore(None)
            aggregation.open_round(event.round, base, ())
            for update in taken:
                waiting = answers[update.site, update.order_round]
                used[update.site, update.order_round] += 1
                path = coordinator.home / f"oracle-{update.site}"
                path.write_bytes(coordinator.sites.files[waiting.answer.update.payload.blob.digest])
                work = coordinator.sites.done[waiting.answer.update.work.order_digest]
                aggregation.offer(
                    update.site,
                    work,
                    path,
                    order_round=update.order_round,
                    staleness=update.staleness,
                )
            out = coordinator.home / f"oracle-{event.round}"
            models.append(aggregation.close(out, taken).digest)
            base = out
        state, _ = step(state, event)
    return models, used


@pytest.mark.usefixtures("one_at_a_time")
def test_an_async_run_that_dies_at_any_write_loses_no_update_and_counts_none_twice(made):
    undisturbed = made("undisturbed", rounds=4, **ASYNC)
    with pytest.MonkeyPatch.context() as patched:
        watch = KillAt(patched, -1, after=False)
        undisturbed.run()
    assert summary_of(undisturbed)["status"] == "completed"
    for write in range(watch.writes):
        for after in (False, True):
            where = f"write {write}, {'after' if after else 'before'}"
            coordinator = made(f"{write}-{after}", rounds=4, **ASYNC)
            with pytest.MonkeyPatch.context() as patched:
                KillAt(patched, write, after=after)
                assert to_the_end(coordinator, gateway_dies=write % 2 == 1) == 2, where
            summary = summary_of(coordinator)
            assert summary["status"] == "completed", where
            models, used = recomputed(coordinator)
            made_models = [
                e.model.digest for e in coordinator.events() if isinstance(e, ModelAggregated)
            ]
            assert made_models == models, where
            assert len(models) == 4, where
            assert max(used.values()) == 1, where
            accepted = counted(coordinator.events())
            assert len(accepted) == len(set(accepted)), where
            assert left_behind(coordinator)[0] == set(), where


def test_a_run_that_dies_again_and_again_ends_with_the_same_model(made):
    undisturbed = made("undisturbed", **STRATEGIES["FedAdam"])
    undisturbed.run()
    coordinator = made(**STRATEGIES["FedAdam"])
    for after in (False, True) * 4:
        with pytest.MonkeyPatch.context() as patched:
            KillAt(patched, 3, after=after)
            try:
                coordinator.run()
            except Killed:
                coordinator.start_gateway()
    to_the_end(coordinator)
    assert summary_of(coordinator)["model"] == summary_of(undisturbed)["model"]
    assert coordinator.sites.done.keys() == undisturbed.sites.done.keys()
    assert sum(isinstance(e, RunResumed) for e in coordinator.events()) >= 2


# ---- what is lost, and what is told twice ---------------------------------------------------


def killed_at(coordinator, write):
    with pytest.MonkeyPatch.context() as patched:
        KillAt(patched, write, after=True)
        with pytest.raises(Killed):
            coordinator.run()


def killed_after(coordinator, kind, count=1):
    """Let the ServerApp die once the journal holds so many events of a kind."""
    append = Journal.append

    def dying(journal, events):
        append(journal, events)
        if sum(isinstance(event, kind) for event in journal.events()) >= count:
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Journal, "append", dying)
        with pytest.raises(Killed):
            coordinator.run()


def the(coordinator, kind):
    return [event for event in coordinator.events() if isinstance(event, kind)]


@pytest.mark.parametrize("name", ["fedavg", "FedAdam"])
def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before_and_says_so(made, name):
    undisturbed = made("undisturbed", **STRATEGIES[name])
    undisturbed.run()
    coordinator = made(**STRATEGIES[name])
    killed_after(coordinator, ModelAggregated, 2)
    newest = the(coordinator, ModelAggregated)[-1]
    broken = newest.state or newest.model
    data = bytearray(coordinator.model_path(broken.digest).read_bytes())
    data[-3] ^= 1
    coordinator.model_path(broken.digest).write_bytes(data)
    to_the_end(coordinator)
    (lost,) = the(coordinator, CheckpointLost)
    assert lost.round == 1
    assert "another digest" in lost.reason
    assert summary_of(coordinator)["model"] == summary_of(undisturbed)["model"]
    assert coordinator.sites.done.keys() == undisturbed.sites.done.keys()  # sent again, not redone
    assert metrics_of(coordinator) == metrics_of(undisturbed)


def test_an_async_run_that_falls_back_asks_again_for_what_was_in_the_lost_model(made):
    coordinator = made(rounds=3, **ASYNC)
    killed_after(coordinator, ModelAggregated)
    (newest,) = the(coordinator, ModelAggregated)
    entered = the(coordinator, ReplyAccepted)[: ASYNC["buffer"]]
    coordinator.model_path(newest.model.digest).write_bytes(b"torn")
    to_the_end(coordinator)
    (lost,) = the(coordinator, CheckpointLost)
    assert lost.round == 0
    assert summary_of(coordinator)["status"] == "completed", summary_of(coordinator)["reason"]
    assert [
        coordinator.sites.deliveries[answer.update.work.order_digest] for answer in entered
    ] == [2, 2]
    given = {event.update.work.order_digest for event in the(coordinator, ReplyAccepted)}
    assert given <= coordinator.sites.done.keys()  # the same orders: what is done is sent again


def test_a_run_none_of_whose_models_can_be_read_says_where_to_get_one(made):
    coordinator = made()
    killed_after(coordinator, ModelAggregated, 2)
    for path in (coordinator.folder / "models").iterdir():
        if path.is_file():
            os.truncate(path, 10)
    before = len(coordinator.events())
    with pytest.raises(IntegrityError, match=r"models back from a backup"):
        coordinator.run()
    assert len(coordinator.events()) == before


def test_a_recorded_update_that_is_gone_is_asked_for_again_and_not_trained_again(made):
    undisturbed = made("undisturbed")
    undisturbed.run()
    coordinator = made()
    with pytest.MonkeyPatch.context() as patched:  # one reply a commit
        patched.setattr(runner, "MAX_AT_ONCE", 1)
        killed_after(coordinator, ReplyAccepted, 2)
    first = the(coordinator, ReplyAccepted)[0]
    coordinator.store.path(first.update.payload.blob.digest).write_bytes(b"torn")
    to_the_end(coordinator)
    (lost,) = the(coordinator, UpdateLost)
    assert (lost.site, lost.round) == (first.site, 1)
    assert coordinator.sites.deliveries[first.update.work.order_digest] == 2
    assert summary_of(coordinator)["model"] == summary_of(undisturbed)["model"]
    assert coordinator.sites.done.keys() == undisturbed.sites.done.keys()


def test_updates_received_are_not_asked_for_again(made):
    coordinator = made()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "MAX_AT_ONCE", 1)
        killed_after(coordinator, ReplyAccepted, 2)
    accepted = [event.update.work.order_digest for event in the(coordinator, ReplyAccepted)]
    to_the_end(coordinator)
    assert [coordinator.sites.deliveries[digest] for digest in accepted] == [1, 1]
    assert the(coordinator, UpdateLost) == []


def test_files_that_a_dead_process_left_half_done_are_swept(made):
    coordinator = made()
    killed_at(coordinator, 3)
    (coordinator.folder / "models" / ("0" * 64)).write_bytes(b"made, never journalled")
    (coordinator.folder / "models" / ".new" / "round-1.safetensors").write_bytes(b"half")
    to_the_end(coordinator)
    assert left_behind(coordinator) == (set(), 2)
    assert list((coordinator.folder / "models" / ".new").iterdir()) == []


def test_a_stop_ends_the_run_after_its_round_once_however_often_it_is_told(made):
    coordinator = made(rounds=50)
    coordinator.stop("asked by ana", after_round=True)
    killed_after(coordinator, StopRequested)  # told before the run began, told again to the next
    to_the_end(coordinator)
    (stop,) = the(coordinator, StopRequested)
    assert stop.after_round
    assert summary_of(coordinator)["status"] == "stopped"


def test_a_stop_comes_before_the_code_that_the_last_process_was_stuck_in(made, monkeypatch):
    coordinator = made(rounds=50)
    close, called = Standing.close, []

    def stuck(standing, command, out):
        if command.round == 2:
            called.append(command.round)
            raise Killed
        return close(standing, command, out)

    monkeypatch.setattr(runner, "LARGE_MODEL_BYTES", 0)  # written before it is aggregated
    monkeypatch.setattr(Standing, "close", stuck)
    with pytest.raises(Killed):
        coordinator.run()
    coordinator.stop("asked by ana", after_round=False)
    coordinator.run()
    assert called == [2]
    assert summary_of(coordinator)["status"] == "stopped"
    assert len(the(coordinator, ModelAggregated)) == 1


def test_a_stop_under_way_lets_the_round_finish(made):
    coordinator = made(rounds=50)
    asked = []

    def stop_in_round_2(messages):
        if not asked and messages[0].metadata.group_id == "2":
            asked.append(coordinator.stop("asked by ana", after_round=True))

    coordinator.run(on_push=stop_in_round_2)
    summary = summary_of(coordinator)
    assert (summary["status"], len(summary["rounds"])) == ("stopped", 2)
    assert summary["model"]["digest"] == the(coordinator, ModelAggregated)[-1].model.digest


def test_a_stopped_run_that_is_reopened_goes_on_to_the_same_model(made):
    undisturbed = made("undisturbed", **STRATEGIES["FedAdam"])
    undisturbed.run()
    coordinator = made(**STRATEGIES["FedAdam"])

    def stop_in_round_2(messages):
        if messages[0].metadata.group_id == "2":
            coordinator.stop("asked by ana", after_round=False)

    coordinator.run(on_push=stop_in_round_2)
    assert summary_of(coordinator)["status"] == "stopped"
    coordinator.run()  # nobody reopened it: it stays ended
    assert the(coordinator, RunReopened) == []
    coordinator.start_gateway()  # and with it, the stop is forgotten
    (coordinator.folder / "reopen.json").write_text(json.dumps({"by": "ana"}))
    killed_after(coordinator, RunReopened)
    to_the_end(coordinator)
    assert [event.by for event in the(coordinator, RunReopened)] == ["ana"]
    assert summary_of(coordinator)["status"] == "completed"
    assert summary_of(coordinator)["model"] == summary_of(undisturbed)["model"]
    assert coordinator.sites.done.keys() == undisturbed.sites.done.keys()


def test_a_run_that_is_reopened_never_looks_ended_again(made, monkeypatch):
    coordinator = made()
    coordinator.stop("asked by ana", after_round=True)
    coordinator.run()
    summary, reopen = (coordinator.folder / name for name in ("summary.json", "reopen.json"))
    assert summary_of(coordinator)["status"] == "stopped"
    coordinator.start_gateway()
    reopen.write_text(json.dumps({"by": "ana"}))
    unlink, looks = Path.unlink, []

    def seen(path, missing_ok=False):
        unlink(path, missing_ok)
        if path in (summary, reopen):
            looks.append(summary.exists() and not reopen.exists())

    monkeypatch.setattr(Path, "unlink", seen)
    to_the_end(coordinator)
    assert looks[:2] == [False, False]
    assert summary_of(coordinator)["status"] == "completed"


def test_a_site_that_left_for_good_is_told_of_once(made):
    coordinator = made(quorum=2)
    coordinator.left("vega", "offline")
    killed_after(coordinator, SiteLeft)
    to_the_end(coordinator)
    assert [event.site for event in the(coordinator, SiteLeft)] == ["vega"]
    assert summary_of(coordinator)["never_took_part"] == ["vega"]


def test_an_answer_that_is_given_twice_is_written_once(made):
    coordinator = made(rounds=1)
    again = iter(["lumi"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "MAX_AT_ONCE", 1)  # it is back before its reply was heard
        coordinator.run(on_push=lambda _: [coordinator.link.came(site) for site in again])
    train = [event for event in the(coordinator, ReplyAccepted) if event.kind == "train"]
    assert max(coordinator.sites.deliveries.values()) == 2
    assert sorted(event.site for event in train) == sorted(SITES)
    assert summary_of(coordinator)["status"] == "completed"


# ---- when others are gone -------------------------------------------------------------------


def test_without_its_gateway_the_process_ends_without_a_word_and_the_run_goes_on(made):
    coordinator = made()
    gone = []

    def gateway_goes(messages):
        if not gone and messages[0].metadata.group_id == "2":
            gone.append(len(coordinator.events()))
            coordinator.link.close()

    coordinator.run(on_push=gateway_goes)
    assert summary_of(coordinator) is None
    assert len(coordinator.events()) == gone[0]
    coordinator.start_gateway()
    to_the_end(coordinator)
    assert summary_of(coordinator)["status"] == "completed"


def test_a_reply_to_an_order_of_an_earlier_process_never_counts(made):
    coordinator = made()
    killed_at(coordinator, 1)  # orders are out in the journal, replies under way
    killed_at(coordinator, 3)
    earlier = coordinator.grid.replies
    assert earlier

    def come_late(_messages):
        for message_id, (site, text, digest) in earlier.items():
            assert coordinator.link.reply(site, message_id, text, digest) is None

    coordinator.run(on_push=come_late)
    assert len(counted(coordinator.events())) == 9
    assert not set(earlier) & set(coordinator.grid.pulled)


def test_a_silent_site_is_named_at_the_deadline_and_messages_live_as_long_as_they_may_count(made):
    coordinator = made(rounds=1, quorum=2, deadline_s=0.3, lateness_s=0.2)
    coordinator.run(silent=["lumi"])
    sites = summary_of(coordinator)["rounds"][0]["sites"]
    assert sites["lumi"]["status"] == "no_answer"
    assert sites["cesga"]["status"] == sites["vega"]["status"] == "took_part"
    assert {message.metadata.ttl for message in coordinator.grid.pushed} == {0.3 + 0.2 + 60.0}


def test_the_run_does_not_wait_for_sites_longer_than_it_is_told_to(made):
    coordinator = made(rounds=1, quorum=2)
    begun = time.monotonic()
    with prompt(10):
        coordinator.run(here=("cesga", "vega"), silent=["lumi"])
    assert time.monotonic() - begun >= 0.2
    assert summary_of(coordinator)["never_took_part"] == ["lumi"]


def test_a_damaged_initial_model_fails_the_run_with_a_reason(made):
    coordinator = made()
    os.truncate(coordinator.model_path(coordinator.initial.digest), 10)
    coordinator.run()
    summary = summary_of(coordinator)
    assert summary["status"] == "failed"
    assert "the initial model is 10 bytes long" in summary["reason"]


PRIVATE = PrivacyPlan(
    target_epsilon=None,
    noise_multiplier=1.0,
    delta=1e-5,
    clip_norm_l2=1.0,
    grad_sample_mode="hooks",
    evaluation_noise_multiplier=1.0,
    evaluation_loss_clip=10.0,
)


def test_sites_of_a_private_run_hear_that_it_is_over(made):
    coordinator = made(rounds=1, privacy=PRIVATE)
    coordinator.run()
    assert sorted(coordinator.sites.ended) == sorted(SITES)


def test_a_failed_private_run_keeps_what_the_sites_hold_for_it(made):
    coordinator = made(rounds=1, privacy=PRIVATE, retries=0)
    coordinator.sites.refuse["lumi", 1] = "budget_exhausted"
    coordinator.run()
    assert summary_of(coordinator)["status"] == "failed"
    assert coordinator.sites.ended == []


def test_a_model_that_cannot_be_measured_does_not_end_the_run(made, caplog):
    coordinator = made(rounds=2, central=BlobRef(digest=f"sha256:{'0' * 64}", bytes=11))
    (coordinator.folder / CENTRAL).write_bytes(b"no data set")
    coordinator.run()
    assert summary_of(coordinator)["status"] == "completed"
    assert [event.metrics for event in the(coordinator, CentralMeasured)] == [{}, {}]
    assert "the model of round 1 could not be measured" in caplog.text


def test_a_site_that_refuses_is_named_and_does_not_hold_up_the_round(made):
    coordinator = made(rounds=2, quorum=2, retries=0)
    coordinator.sites.refuse["lumi", 2] = "policy_task"
    coordinator.run()
    sites = summary_of(coordinator)["rounds"][1]["sites"]
    assert (sites["lumi"]["status"], sites["lumi"]["code"]) == ("refused", "policy_task")
    assert len(counted(coordinator.events())) == 5


def test_orders_sent_are_numbered_on_across_restarts(made):
    coordinator = made()
    for count in range(1, 4):
        killed_after(coordinator, OrdersSent, count)  # journalled, and never sent
    to_the_end(coordinator)
    assert coordinator.sites.numbers[1, "train", "cesga"] == 4
