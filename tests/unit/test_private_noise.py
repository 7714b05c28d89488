"""The source of noise and samples: its stream, its distributions, its keys."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import stats

from fedfactory.privacy import chacha
from fedfactory.privacy.chacha import KEY_BYTES, NoiseSource
from tests.private_descents import fresh_source

KEY = bytes(range(KEY_BYTES))
# RFC 8439, section 2.3.2, has a nonce; with none, these are the published first words of the
# all-zero key (draft-strombergson-chacha-test-vectors, TC1, 20 rounds, 256 bits).
ZERO_KEY_STREAM = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
)
ONE_IN_A_MILLION = 1e-6


@pytest.mark.rule("16")
def test_the_stream_is_chacha20() -> None:
    words = np.empty(8, np.uint64)
    NoiseSource(bytes(KEY_BYTES)).fill_words(words)
    assert words.tobytes() == ZERO_KEY_STREAM


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes, expected 32"):
        NoiseSource(bytes(31))


def test_a_stream_goes_on_under_a_new_key_before_the_old_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chacha, "REKEY_BYTES", 1024)
    rekeyed, words = NoiseSource(KEY), np.empty(4096, np.uint64)
    for start in range(0, len(words), 64):
        rekeyed.fill_words(words[start : start + 64])
    monkeypatch.undo()
    plain = np.empty(4096, np.uint64)
    NoiseSource(KEY).fill_words(plain)
    assert np.array_equal(words[:64], plain[:64])
    assert not np.array_equal(words[128:], plain[128:])
    assert len(set(words.tolist())) == len(words)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 4097, 300_000])
def test_gaussians_are_standard_normal(count: int) -> None:
    draws = np.concatenate([_gaussians(count) for _ in range(max(1, 300_000 // count // 10))])
    if len(draws) < 1000:
        draws = np.concatenate([_gaussians(count) for _ in range(20_000)])
    square = float((draws**2).sum())
    low, high = stats.chi2.interval(1 - ONE_IN_A_MILLION, len(draws))
    assert low < square < high
    assert abs(draws.mean()) < stats.norm.isf(ONE_IN_A_MILLION / 2) / len(draws) ** 0.5
    assert stats.kstest(draws, "norm").pvalue > ONE_IN_A_MILLION


def test_gaussians_are_independent_of_each_other() -> None:
    draws = _gaussians(1 << 18)
    bound = stats.norm.isf(ONE_IN_A_MILLION / 2) / (len(draws) / 2) ** 0.5
    # The two of a Box-Muller pair lie half a block apart: neither they nor their squares correlate.
    for distance in (1, 2, 4, chacha._BLOCK // 4, chacha._BLOCK // 2):
        first, second = draws[:-distance], draws[distance:]
        assert abs(np.corrcoef(first, second)[0, 1]) < bound
        assert abs(np.corrcoef(first**2, second**2)[0, 1]) < bound


def test_gaussians_depend_on_the_key_and_on_no_other_generator() -> None:
    assert np.array_equal(_seeded_gaussians(KEY), _seeded_gaussians(KEY))
    assert not np.array_equal(_seeded_gaussians(), _seeded_gaussians())


def test_drawing_moves_no_other_generator() -> None:
    before = _states()
    fresh_source().fill_gaussians(np.empty(100))
    fresh_source().poisson_sample(100, 0.5)
    assert _states() == before


def test_a_poisson_sample_takes_each_with_the_rate() -> None:
    source, count, draws = fresh_source(), 50, 4000
    hits = np.zeros(count)
    sizes = []
    for _ in range(draws):
        sample = source.poisson_sample(count, 0.1)
        assert np.all(np.diff(sample) > 0)
        hits[sample] += 1
        sizes.append(len(sample))
    low, high = stats.binom.interval(1 - ONE_IN_A_MILLION / count, draws, 0.1)
    assert np.all((low <= hits) & (hits <= high))
    # Sizes vary as a binomial's do: the sample is Poisson's, of no fixed size.
    spread = np.var(sizes) / (count * 0.1 * 0.9)
    assert 0.8 < spread < 1.2


@pytest.mark.parametrize(("rate", "size"), [(1.0, 7), (0.0, 0), (2.0**-70, 0)])
def test_a_sample_of_everybody_or_nobody(rate: float, size: int) -> None:
    assert len(fresh_source().poisson_sample(7, rate)) == size


def test_choices_are_even_and_below_their_bounds() -> None:
    bounds = np.repeat(np.array([1, 2, 5]), 20_000)
    chosen = fresh_source().choose_below(bounds)
    assert np.all((chosen >= 0) & (chosen < bounds))
    counts = np.bincount(chosen[bounds == 5], minlength=5)
    assert stats.chisquare(counts).pvalue > ONE_IN_A_MILLION


def test_uniforms_reach_neither_end() -> None:
    bits = np.array([0, 2**64 - 1], np.uint64)
    ends = chacha._to_uniforms(bits)
    assert 0.0 < ends[0] < 1e-15
    assert 1.0 - 1e-15 < ends[1] < 1.0
    assert (ends[1:] * 2.0**40).astype(np.int64)[0] == 2**40 - 1


def _states() -> tuple[bytes, object, bytes]:
    numpys = np.random.get_state()[1]  # noqa: NPY002  it must not move
    return torch.random.get_rng_state().numpy().tobytes(), random.getstate(), numpys.tobytes()


def _gaussians(count: int) -> np.ndarray:
    draws = np.empty(count)
    fresh_source().fill_gaussians(draws)
    return draws


def _seeded_gaussians(key: bytes | None = None) -> np.ndarray:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  it must not matter
    draws = np.empty(10)
    (NoiseSource(key) if key else fresh_source()).fill_gaussians(draws)
    return draws
