"""What a network draws for itself in a step, as dropout does: where its generator's state is from.

Under differential privacy it is from the operating system. With a state that a coordinator knows,
one record less gives the others known, different masks: the sum moved by 5 clipping norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch

from fedfactory.privacy.chacha import NoiseSource

_WORDS: Final = 624  # of the Mersenne Twister; torch keeps each in 8 bytes, after a header of 24


def repeat_randomness(seed: int) -> None:
    """Make the generators that a network draws from begin as `seed` says: same seed, same masks.

    `torch.manual_seed` does it for every kind of device, with a stack trace for each that is not
    there: a quarter of the time of a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


@contextmanager
def secret_randomness(source: NoiseSource, device: torch.device) -> Iterator[Callable[[], None]]:
    """Lend what gives torch's generators a new secret state; put the old states back after.

    Of the CPU's, from which networks on CUDA draw too (which layers to skip), the whole state of
    the Mersenne Twister is drawn, for a seed would be 32 bits of it. On CUDA it is the 64-bit key
    of Philox.
    """
    is_cpu = device.type == "cpu"
    header = torch.Generator().get_state()

    def draw() -> None:
        words = np.empty(_WORDS, np.uint64)
        source.fill_words(words)
        if not is_cpu:
            torch.cuda.manual_seed(int(words[0]))
            source.fill_words(words)
        state = header.numpy()
        state[24 : 24 + 8 * _WORDS] = (words >> np.uint64(32)).view(np.uint8)
        torch.default_generator.set_state(header)

    with torch.random.fork_rng(devices=[] if is_cpu else [device]):
        yield draw
