"""A trial of private work before it is paid for: how it will go through the network. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.privacy import GradSampleMode, Measurement, Mechanism
from fedfactory.privacy.sampling import Sampling, evaluation_pass_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What is tried: one pass of `rows` records, from public numbers alone.

    `grad_sample_mode` is of training; an evaluation needs no gradients.
    """

    kind: WorkKind
    rows: int
    grad_sample_mode: GradSampleMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How private work goes through a network: `rows` a pass, on `threads` threads.

    One row on one thread is what a device gets whose kernels do not give a record the same bits
    wherever it stands.
    """

    rows: int
    threads: int


def training_rehearsal(sample: Sampling, mode: GradSampleMode) -> Rehearsal:
    """Return the trial that training needs: one pass that most of its samples fit into."""
    return Rehearsal(kind="train", rows=sample.pass_rows, grad_sample_mode=mode)


def evaluation_rehearsal(public_examples: int) -> Rehearsal:
    """Return the trial that an evaluation needs: one pass of all public records."""
    rows = evaluation_pass_rows(public_examples)
    return Rehearsal(kind="evaluate", rows=rows, grad_sample_mode="hooks")


def rehearsal_of(work: Mechanism | Measurement) -> Rehearsal:
    """Return the trial that was made of some work before it was paid for."""
    if isinstance(work, Measurement):
        return evaluation_rehearsal(work.public_examples)
    sample = Sampling(
        sample_rate=work.sample_rate, steps=work.steps, expected_batch=work.expected_batch
    )
    return training_rehearsal(sample, work.grad_sample_mode)
