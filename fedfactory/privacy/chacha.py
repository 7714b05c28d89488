"""Noise and sampling that nobody who lacks the key can predict or repeat: a ChaCha20 keystream.

The key comes in as an argument: whoever executes a mechanism draws 32 bytes from the operating
system for it, once, and stores neither key nor state. Torch's and NumPy's own generators give their
state away to whoever sees enough of their output; a stream cipher does not.

Assumed, beyond ChaCha20 (RFC 8439) being a good cipher: numbers are float64, so a Gaussian has 2^53
radii and 2^52 angles, reaches 8.6 standard deviations a draw, and is discrete. Adding up four draws
puts the search for the draws behind an output out of reach (Holohan and Braghin 2021, "Secure
random sampling in differential privacy", section 5.1; n = 2, as in Opacus' secure mode); it does
not make the sum a discrete Gaussian.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

KEY_BYTES: Final = 32
DRAWS: Final = 4
# A new key, from the stream itself, long before ChaCha20's 32-bit block counter ends (256 GiB);
# what a key gave cannot be worked out from the key that follows.
REKEY_BYTES: Final = 1 << 30

# Pairs of numbers worked on at a time: every array of a block stays in a core's cache.
_BLOCK: Final = 8192
_ZEROS: Final = memoryview(bytes(16 * _BLOCK))
_ONE_BITS: Final = np.uint64(0x3FF0_0000_0000_0000)  # of the float64 1.0
_JUST_BELOW_ONE: Final = 1.0 - 2.0**-53


class NoiseSource:
    """Words, uniforms, Gaussians and samples from one keystream. Not for several threads."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key has {len(key)} bytes, expected {KEY_BYTES}")
        self._start(key)
        self._bits = np.empty(2 * _BLOCK, np.uint64)
        self._scratch = np.empty((2, _BLOCK))

    def fill_words(self, out: NDArray[np.uint64]) -> None:
        """Fill `out` (contiguous) with the next words of the keystream."""
        room = memoryview(out.view(np.uint8))  # type: ignore[arg-type]  # an array is a buffer
        for start in range(0, len(room), len(_ZEROS)):
            piece = room[start : start + len(_ZEROS)]
            if self._left < len(piece) + KEY_BYTES:
                self._start(self._stream.update(_ZEROS[:KEY_BYTES]))
            self._stream.update_into(_ZEROS[: len(piece)], piece)
            self._left -= len(piece)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers, odd multiples of 2^-53, evenly from 0 to 1, both excluded."""
        bits = np.empty(count, np.uint64)
        self.fill_words(bits)
        return _to_uniforms(bits)

    def fill_gaussians(self, out: NDArray[np.float64]) -> None:
        """Fill `out` (count,) with standard normals, each the sum of four draws, halved."""
        step = 2 * _BLOCK // DRAWS
        for start in range(0, len(out), step):
            self._fill_block(out[start : start + step])

    def poisson_sample(self, count: int, rate: float) -> NDArray[np.intp]:
        """Return the sorted numbers below `count` that came up, each with probability `rate`.

        The probability is `rate` rounded down to a multiple of 2^-64.
        """
        threshold = int(rate * 2.0**64)
        if threshold >= 1 << 64:
            return np.arange(count)
        words = np.empty(count, np.uint64)
        self.fill_words(words)
        return np.flatnonzero(words < np.uint64(threshold))

    def choose_below(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return, for each of `bounds`, a whole number from 0 to below it."""
        return (self.uniforms(len(bounds)) * bounds).astype(np.int64)

    def _start(self, key: bytes) -> None:
        # A key serves one stream, so the nonce and counter may be zero.
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._left = REKEY_BYTES

    def _fill_block(self, out: NDArray[np.float64]) -> None:
        """Fill `out`, at most half a block, by Box and Muller (1958) on pairs of uniforms.

        A draw is half a standard normal. Its pair's cosine goes into one half of `out`, its sine
        into the other, so that no output adds up two draws of one pair. With t = tan(angle / 2),
        cos = (1 - t^2) / (1 + t^2) and sin = 2t / (1 + t^2): one fast function instead of two slow.
        """
        half = (len(out) + 1) // 2
        pairs = DRAWS * half
        bits = self._bits[: 2 * pairs]
        self.fill_words(bits)
        uniforms = _to_uniforms(bits)
        radii, t = uniforms[:pairs], uniforms[pairs:]
        squares, scale = self._scratch[:, :pairs]
        np.log(radii, out=radii)
        radii *= -0.5
        np.sqrt(radii, out=radii)
        t -= 0.5
        t *= np.pi
        np.tan(t, out=t)
        np.multiply(t, t, out=squares)
        np.add(squares, 1.0, out=scale)
        np.divide(radii, scale, out=scale)  # radius / (1 + t^2)
        t *= scale
        t *= 2.0
        np.subtract(1.0, squares, out=squares)
        squares *= scale
        squares.reshape(DRAWS, half).sum(0, out=out[:half])
        t.reshape(DRAWS, half)[:, : len(out) - half].sum(0, out=out[half:])


def _to_uniforms(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn random words, in place, into (0, 1): 52 bits as the fraction of a number from 1 to 2."""
    bits >>= np.uint64(12)
    bits |= _ONE_BITS
    uniforms = bits.view(np.float64)
    uniforms -= _JUST_BELOW_ONE
    return uniforms
