"""The digits of moments against float64, also of values made to lose them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm import parts, sampling, slices
from jaxnorm.reduction import Reduction
from tests.conftest import every_platform
from tests.reference import moments64

pytestmark = [pytest.mark.usefixtures("platform"), every_platform]

RNG = np.random.default_rng(0)


def samples(size, offset):
    """Return values of mean `offset` and standard deviation 1; the first is far off."""
    x = RNG.normal(offset, 1.0, (size, 4)).astype(np.float32)
    x[0] += 10
    return x


@pytest.mark.parametrize("transform", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_accuracy_contract(transform, platform):
    """Variance to 2e-6, mean to one unit in its last place (many rows).

    In parts, the mean of one may be far from that of all: 3e-7 of std, as documented.
    (Of a GPU a CPU shows the form, but not the order that it sums in.)
    """
    compute = transform(lambda x: jn.compute_moments(x, 0))
    for size in (49, 64, 500, 4096, 100_352, 800_000):
        for offset in (0.0, 1e2, 1e4, 1e6):
            x = samples(size, offset)
            _, mean, var = moments64(x, (0,))
            got = compute(x)
            np.testing.assert_allclose(got.var, var, rtol=2e-6)
            # A mean near 0 is a sum that cancels: it is right relative to std.
            unit = np.spacing(np.maximum(np.abs(mean), 1).astype(np.float32))
            in_parts = {"gpu": 1e-7, "parts": 3e-7, "gpus": 3e-7}
            more = in_parts.get(platform, 0) * np.sqrt(var)
            assert np.all(np.abs(got.mean - mean) <= unit + more)


@pytest.mark.parametrize("offset", [0.0, 0.3, 1.9, 1e2, 1e6])
def test_accuracy_of_few_rows(offset):
    """Of 20000 sets of each size, the worst."""
    compute = jax.jit(lambda x: jn.compute_moments(x, 0))
    for size in (2, 3, 8, 13, 14, 24, 33):
        x = RNG.normal(offset, 1.0, (size, 20_000)).astype(np.float32)
        _, mean, var = moments64(x, (0,))
        got = compute(x)
        # Two values may lie so near each other that eps is more than the variance.
        np.testing.assert_allclose(got.var, var, rtol=2e-6, atol=1e-12)
        error = np.abs(np.asarray(got.mean, np.float64) - mean)
        unit = np.spacing(np.abs(mean).astype(np.float32))
        assert np.all(error <= unit + 3e-7 * np.sqrt(var))


def test_sorted_values_lose_no_digits():
    """The shift is taken from a part of the values, here the most unlike the rest."""
    for x in (np.sort(samples(4096, 0.0), 0), np.sort(samples(4096, 0.0), 0)[::-1]):
        _, _, var = moments64(x, (0,))
        np.testing.assert_allclose(jn.compute_moments(x, 0).var, var, rtol=2e-6)
    step = np.repeat(np.float32([[1e3], [0.0]]), [512, 3584], axis=0)
    _, _, var = moments64(step, (0,))
    np.testing.assert_allclose(jn.compute_moments(step, 0).var, var, rtol=2e-6)


def in_sample(rows, platform, part=1):
    """Say of each row whether it is in (a part of) what a shift is taken from.

    Of a TPU, which takes all rows, say so of a quarter.
    """
    shards = 8 if platform in ("parts", "gpus") and rows % 8 == 0 else 1
    x, over = jnp.ones((shards, rows // shards, 4)), Reduction((1,))
    row = np.arange(rows)
    devices = {"cpu": 1, "parts": 8, "spread": 1000}.get(platform)
    if devices is not None:
        whole_axis = 1 if shards > 1 else None
        cut = slices.cut((x,), (1,), devices, whole_axis)
        if cut is not None:
            pieces, size = sampling._pieces(cut, pack_last_axis=False)
            row, quarter = row % cut.num_rows, cut.num_rows // 4
            place = np.minimum(row // quarter, 3) * quarter
            return row - place < pieces * size * part
    number = shards
    if platform in ("gpu", "gpus"):
        _, more = parts._split_on_gpu(x, over, shards) or (1, 1)
        number *= more
    return row % (rows // number) < np.ceil(rows / number / 4) * part


@pytest.mark.parametrize("rows", [1000, 2048, 5003, 100_352])
@pytest.mark.parametrize("part", [1, 0.6, 0.15])
def test_values_that_hide_in_the_sample_cost_no_digits(rows, part, platform):
    """Every value that the shift is taken from is unlike the rest."""
    for step in (3, 30, 1000):
        x = RNG.normal(size=(rows, 4)).astype(np.float32)
        x[in_sample(rows, platform, part)] += step
        _, _, var = moments64(x, (0,))
        np.testing.assert_allclose(jn.compute_moments(x, 0).var, var, rtol=2e-6)


@pytest.mark.parametrize("rows", [49, 200, 2048, 5003, 6272, 50_000])
def test_outliers_in_the_very_rows_of_the_sample(rows, platform):
    """The worst for the shift: just what it is taken from."""
    sampled = in_sample(rows, platform)
    variance = jax.jit(lambda x: jn.compute_moments(x, 0).var)
    for seed, step in itertools.product(range(6), (0.01, 0.02, 1, 100)):
        x = np.random.default_rng(seed).normal(0, 0.01, (rows, 4)).astype(np.float32)
        x[sampled] += np.float32(step)
        _, _, var = moments64(x, (0,))
        np.testing.assert_allclose(variance(x), var, rtol=2.3e-6)


def test_two_values_one_of_them_in_the_sampled_rows(platform):
    """What is rounded is rounded alike in every row."""
    variance = jax.jit(lambda x: jn.compute_moments(x, 0).var)
    quarters = np.array_split(np.flatnonzero(in_sample(3136, platform)), 4)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rng.normal(0, 0.01, (3136, 3))  # then seed 3 gives 2.8e-6
        x = np.full((3136, 3), rng.normal(0, 1e-3))
        for rows in quarters:
            x[rows] += 0.01 * rng.uniform(0.9, 1.1)
        x = x.astype(np.float32)
        _, _, var = moments64(x, (0,))
        np.testing.assert_allclose(variance(x), var, rtol=2.9e-6)


def test_the_worst_that_searches_found(platform):
    """Two values, one just in the sample: equal terms are rounded alike (6.9e-6)."""
    low, more = -5.688616260158972e-06, 0.18566057053971
    values = np.where(in_sample(12_257, platform), low + more, low)
    x = np.stack([values] * 4, 1).astype(np.float32)
    _, _, var = moments64(x, (0,))
    np.testing.assert_allclose(jn.compute_moments(x, 0).var, var, rtol=7e-6)


def test_the_worst_mean_that_searches_found(platform):
    """As above: 1.1e-6 standard deviations beyond the last place."""
    for rows, first, low, high in ((65_536, 3276, -1, 0.511), (6272, 326, 0, 2.193)):
        values = np.where(np.arange(rows) % (rows // 4) < first, low, high)
        x = np.stack([values] * 4, 1).astype(np.float32)
        _, mean, var = moments64(x, (0,))
        error = np.abs(np.asarray(jn.compute_moments(x, 0).mean, np.float64) - mean)
        unit = np.spacing(np.abs(mean).astype(np.float32))
        assert np.all(error <= unit + 1.2e-6 * np.sqrt(var))


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x = RNG.normal(1e8, 1.0, (1000, 2))
        got = jn.compute_moments(x, 0)
        assert got.mean.dtype == jnp.float64
        np.testing.assert_allclose(got.var, x.var(0), rtol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_has_float32_statistics(dtype):
    x = jnp.asarray(RNG.normal(3.0, 0.1, (10_000, 3)), dtype)
    got = jn.compute_moments(x, 0)
    _, mean, var = moments64(x, (0,))
    assert got.mean.dtype == got.var.dtype == jnp.float32
    np.testing.assert_allclose(got.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(got.var, var, rtol=2e-6)


@pytest.mark.parametrize("size", [7, 10, 97, 4099])
def test_m2_of_what_is_constant_is_never_negative(size):
    """Rounding could leave less than nothing; a square root of it is NaN."""
    values = np.random.default_rng(0).normal(0, 100, 300).astype(np.float32)
    x = jnp.asarray(np.repeat(values[None], size, axis=0))
    for weights in (None, jnp.full((size, 1), 0.3)):
        m2 = jn.compute_moments(x, 0, weights=weights).m2
        assert np.all(m2 >= 0)
        assert np.all(m2 <= 1e-9 * values**2)
