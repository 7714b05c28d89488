"""`python -m bench.ledger [--entries N]`: what reserve and commit take, late in a history."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Order, TrainParameters, WorkKey
from fedfactory.contracts.plans import RunTerms
from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.contracts.updates import Payload, Update
from fedfactory.privacy.entries import Charge
from site_agents.admission import Caps, Shortfall, admit, charge_of, run_of
from site_agents.ledger import Ledger

LINEAGE = "bench"
PUBLIC_SIZE = 5000
ROUNDS = 50
MEASURED = 200
CAPS = Caps(epsilon_per_run=10.0, epsilon_per_lineage=1000.0)
DIGEST = "sha256:" + "0" * 64
TRAINING = TrainParameters(
    local_epochs=1, batch_size=100, lr=0.1, momentum=0.9, proximal_mu=0.0, max_steps=None
)


def _plan(run: int) -> PrivacyPlan:
    return PrivacyPlan(
        target_epsilon=None,
        noise_multiplier=4.0 + run / 100,  # every run another cost, as noise is found anew
        delta=1e-6,
        clip_norm_l2=1.0,
        grad_sample_mode="hooks",
        evaluation_noise_multiplier=None,
        evaluation_loss_clip=1.0,
    )


def _order(run: int, number: int) -> Order:
    return Order(
        coordinator="bench",
        run_id=f"run-{run}",
        round=number,
        kind="train",
        site="bench",
        task="digits",
        task_parameters={},
        training=TRAINING,
        base=BlobRef(digest=DIGEST, bytes=1),
        seed=1,
        privacy=_plan(run),
        terms_digest=f"plan-{run}",
    )


def _terms(run: int) -> RunTerms:
    return RunTerms(
        coordinator="bench",
        run_id=f"run-{run}",
        sites=("bench",),
        task="digits",
        task_parameters={},
        initial=BlobRef(digest=DIGEST, bytes=1),
        strategy="fedavg",
        strategy_options={},
        mode="sync",
        training=TRAINING,
        rounds=ROUNDS,
        evaluate=False,
        privacy=_plan(run),
        max_model_bytes=1,
        max_update_norm_l2=None,
        nonce="",
        not_after=time.time() + 1e6,
    )


def _update(key: WorkKey) -> Update:
    blob = BlobRef(digest=DIGEST, bytes=1)
    payload = Payload(form="delta", blob=blob)
    return Update(work=key, payload=payload, examples=1, metrics={}, seconds=1.0, privacy=None)


def admit_run(ledger: Ledger, run: int) -> None:
    """Hold a run of ROUNDS rounds."""
    order = _order(run, 1)
    admitted = admit(
        ledger.budget,
        ledger.accountant,
        order,
        _terms(run),
        lineage=LINEAGE,
        unit="row",
        public_size=PUBLIC_SIZE,
        caps=CAPS,
        now=time.time(),
    )
    assert not isinstance(admitted, Shortfall), admitted.finding
    ledger.admit(admitted)


def reserve(ledger: Ledger, order: Order) -> None:
    """Judge a round and spend it, as the agent does: nothing is remembered in between."""
    charge = charge_of(
        ledger.budget,
        ledger.accountant,
        order,
        public_size=PUBLIC_SIZE,
        caps=CAPS,
        now=time.time(),
    )
    assert isinstance(charge, Charge), charge
    ledger.reserve(order.key(), LINEAGE, charge)


def fill(ledger: Ledger, entries: int) -> int:
    """Write whole runs until the ledger holds `entries`; return how many runs it holds."""
    run = 0
    while ledger.sequence < entries:
        admit_run(ledger, run)
        assert run_of(_order(run, 1)) in ledger.budget.runs
        for number in range(1, ROUNDS + 1):
            order = _order(run, number)
            reserve(ledger, order)
            ledger.commit(order.key(), _update(order.key()))
        run += 1
    return run


def _show(what: str, times_ms: list[float]) -> None:
    p95 = statistics.quantiles(times_ms, n=20)[-1]
    median = statistics.median(times_ms)
    print(f"{what:<18} p50 {median:7.2f} ms   p95 {p95:7.2f} ms   ({len(times_ms)} times)")


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="on which disk (default: the temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        home = Path(folder)
        Ledger.create(home, {LINEAGE: 1e-6}, actor="bench")
        ledger = Ledger.open(home)
        runs = fill(ledger, options.entries)
        print(f"{ledger.sequence} entries, {runs} runs, each of another noise")
        ledger.close()
        _show("open and verify", [_timed(lambda: Ledger.open(home).close()) for _ in range(5)])
        ledger = Ledger.open(home)
        reserves: list[float] = []
        commits: list[float] = []
        while len(reserves) < MEASURED:
            run = runs + len(reserves) // ROUNDS
            if len(reserves) % ROUNDS == 0:
                admit_run(ledger, run)
            order = _order(run, len(reserves) % ROUNDS + 1)
            update = _update(order.key())
            reserves.append(_timed(lambda order=order: reserve(ledger, order)))
            commits.append(
                _timed(lambda order=order, update=update: ledger.commit(order.key(), update))
            )
        _show("reserve", reserves)
        _show("commit", commits)
        _show("reserve + commit", [a + b for a, b in zip(reserves, commits, strict=True)])
        ledger.close()


if __name__ == "__main__":
    main()
