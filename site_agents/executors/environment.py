"""What a worker sees of the agent's environment: an exact list, so that no secret comes along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

KEPT: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SYSTEMROOT"),
        *("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONUSERBASE", "PYTHONNOUSERSITE"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH"),
        *("CUDA_CACHE_PATH", "GPU_DEVICE_ORDINAL", "XDG_CACHE_HOME"),
    }
)
KEPT_PREFIXES: Final = ("LC_", "NVIDIA_", "ROCR_", "ROCM_", "HIP_", "HSA_", "MIOPEN_")
# So many threads as asked, also on a busy machine, and one workspace for every cuBLAS call: both
# decide in which order a kernel adds up.
REPEATABLE: Final = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "MKL_DYNAMIC": "FALSE",
    "OMP_DYNAMIC": "FALSE",
}
THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def worker_environment(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """Return a worker's environment: places, language and devices; no proxy, token or scheduler."""
    kept = {k: v for k, v in environment.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
    return {**kept, **REPEATABLE, **dict.fromkeys(THREADS, str(threads))}
