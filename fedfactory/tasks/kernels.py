"""Kernels that give the same bits for the same rows, for as long as private work lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_deterministic: Any = torch.utils.deterministic  # of which torch has no types


@contextmanager
def deterministic_kernels(threads: int) -> Iterator[None]:
    """Use `threads` threads and deterministic algorithms only, chosen by shape and never by trial.

    TensorFloat-32 is off: in ten bits a gradient and its norm would disagree. On CUDA, cuBLAS also
    needs CUBLAS_WORKSPACE_CONFIG, which the executor sets. An operation that has no deterministic
    form raises RuntimeError.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        _deterministic.fill_uninitialized_memory,
        (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32),
    )
    _set(threads, True, False, (False, True, False, False))
    try:
        yield
    finally:
        _set(*before)


def _set(
    threads: int, deterministic: bool, fill: bool, flags: tuple[bool, bool, bool, bool]
) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    _deterministic.fill_uninitialized_memory = fill
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = flags
