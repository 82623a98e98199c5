"""Spectral norm against the singular values of NumPy in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose

from jaxnorm import SpectralStats, init_spectral_stats, spectral_norm
from tests.spreading import AUTO, EXPLICIT, make_mesh

KERNEL = np.random.default_rng(0).normal(0.3, 1, (3, 3, 4, 6)).astype(np.float32)
KEY = jax.random.key(0)
STATS = SpectralStats(jnp.ones(6), jnp.ones(()))


def converge(kernel, stats, **options):
    """Take 200 steps; 40 at once, as every one of them is compiled."""
    for _ in range(5):
        y, stats = spectral_norm(kernel, stats, training=True, n_steps=40, **options)
    return y, stats


@pytest.mark.parametrize("feature_axis", [-1, 0, 2])
def test_finds_the_largest_singular_value(feature_axis):
    size = KERNEL.shape[feature_axis]
    stats = init_spectral_stats(jax.random.key(0), size)
    kernel, stats = converge(KERNEL, stats, feature_axis=feature_axis)
    v = np.moveaxis(KERNEL.astype(np.float64), feature_axis, -1).reshape(-1, size)
    sigma = np.linalg.svd(v, compute_uv=False)[0]
    assert_allclose(stats.sigma, sigma, rtol=1e-5)
    assert_allclose(np.linalg.norm(stats.u), 1, rtol=1e-6)
    assert_allclose(kernel, KERNEL / sigma, rtol=1e-5)


def test_three_steps_are_three_calls():
    stats = init_spectral_stats(KEY, 6)
    at_once = spectral_norm(KERNEL, stats, training=True, n_steps=3)
    for _ in range(3):
        y, stats = spectral_norm(KERNEL, stats, training=True)
    chex.assert_trees_all_close(at_once, (y, stats), rtol=1e-6)


def test_converges_from_step_to_step():
    stats = init_spectral_stats(jax.random.key(0), 6)
    step = jax.jit(lambda stats: spectral_norm(KERNEL, stats, training=True)[1])
    for _ in range(200):
        stats = step(stats)
    once, kept = spectral_norm(KERNEL, stats, training=False)
    sigma = np.linalg.svd(KERNEL.reshape(-1, 6).astype(np.float64))[1][0]
    assert_allclose(once, KERNEL / sigma, rtol=1e-5)
    assert kept.u is stats.u or (kept.u == stats.u).all()


def test_takes_a_traced_flag():
    stats = init_spectral_stats(jax.random.key(0), 6)
    traces = []

    @jax.jit
    def run(training):
        traces.append(training)
        return spectral_norm(KERNEL, stats, training=training)

    for training in (True, False):
        y, new = run(jnp.array(training))
        expected, expected_stats = spectral_norm(KERNEL, stats, training=training)
        assert_allclose(y, expected, rtol=1e-6)
        assert_allclose(new.u, expected_stats.u, rtol=1e-5)
    assert len(traces) == 1


def test_gradients_of_spectral_norm():
    """With converged vectors the derivative of sigma is that of the singular value."""
    kernel = KERNEL.reshape(-1, 6)
    target = jax.random.normal(jax.random.key(1), kernel.shape)
    stats = init_spectral_stats(jax.random.key(0), 6)
    _, stats = converge(kernel, stats)

    def ours(v):
        return jnp.sum(target * spectral_norm(v, stats, training=False)[0])

    def exact(v):
        return jnp.sum(target * v / jnp.linalg.norm(v, 2))

    assert_allclose(jax.grad(ours)(kernel), jax.grad(exact)(kernel), atol=1e-4)


def test_no_gradient_passes_through_the_singular_vectors():
    """Also while they are far from converged."""
    kernel = KERNEL.reshape(-1, 6)
    target = jax.random.normal(jax.random.key(1), kernel.shape)
    stats = init_spectral_stats(jax.random.key(0), 6)
    left = kernel @ stats.u
    left = left / np.linalg.norm(left)
    right = left @ kernel
    right = right / np.linalg.norm(right)

    def ours(v):
        return jnp.sum(target * spectral_norm(v, stats, training=True)[0])

    def constant(v):
        return jnp.sum(target * v / (left @ v @ right))

    assert_allclose(jax.grad(ours)(kernel), jax.grad(constant)(kernel), atol=1e-5)


def test_a_kernel_of_zeros_has_finite_values_and_gradients():
    def normalize(v):
        return spectral_norm(v, init_spectral_stats(KEY, 3), training=True)[0]

    zeros = jnp.zeros((4, 3))
    assert_allclose(normalize(zeros), 0)
    assert np.isfinite(jax.grad(lambda v: normalize(v).sum())(zeros)).all()


def test_a_kernel_without_a_direction_leaves_the_statistics_alone():
    """Of zeros, not finite or tiny; what comes after it is normalized again."""
    start = init_spectral_stats(KEY, 6)
    for kernel in (0 * KERNEL, np.nan * KERNEL, 1e-20 * KERNEL):
        y, stats = spectral_norm(kernel, start, training=True)
        np.testing.assert_array_equal(y, kernel)
        assert_allclose(stats.u, start.u, rtol=1e-6)
    _, stats = converge(KERNEL, stats)
    sigma = np.linalg.svd(KERNEL.reshape(-1, 6).astype(np.float64))[1][0]
    assert_allclose(stats.sigma, sigma, rtol=1e-5)


def test_the_squares_of_a_kernel_may_overflow():
    stats = init_spectral_stats(KEY, 6)
    large, small = (
        spectral_norm(factor * KERNEL, stats, training=True, n_steps=5)[0]
        for factor in (np.float32(2.0**90), 1)
    )
    assert_allclose(large, small, rtol=1e-5)


def test_a_vector_of_any_length_is_a_direction():
    """As one that was averaged, or comes from elsewhere, may have."""
    stats = init_spectral_stats(KEY, 6)
    longer = stats._replace(u=100 * stats.u)
    chex.assert_trees_all_close(
        spectral_norm(KERNEL, longer, training=True),
        spectral_norm(KERNEL, stats, training=True),
        rtol=1e-5,
    )


def test_half_precision_is_computed_in_float32():
    half = KERNEL.astype(jnp.bfloat16)
    y, new = spectral_norm(half, init_spectral_stats(KEY, 6), training=True)
    assert y.dtype == jnp.bfloat16
    wide = half.astype(jnp.float32)
    exact, _ = spectral_norm(wide, init_spectral_stats(KEY, 6), training=True)
    assert (y == exact.astype(jnp.bfloat16)).all()
    assert new.u.dtype == new.sigma.dtype == jnp.float32


@pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)
@pytest.mark.parametrize(
    "spec", [P(), P("model"), P(None, None, "model"), P(None, None, None, "model")]
)
@pytest.mark.parametrize("u_spec", [P(), P("model")])
def test_sharded_kernels(mode, spec, u_spec):
    """Also where a mesh wants to know how every product is spread."""
    mesh = make_mesh(mode, {"data": 4, "model": 2})
    kernel = np.concatenate([KERNEL, KERNEL[:1]])  # of even sizes
    step = jax.jit(
        lambda kernel, u: spectral_norm(kernel, (STATS._replace(u=u)), training=True)
    )
    placed = [
        jax.device_put(v, NamedSharding(mesh, s))
        for v, s in ((kernel, spec), (STATS.u, u_spec))
    ]
    got, new = step(*placed)
    chex.assert_trees_all_close((got, new), step(kernel, STATS.u), rtol=1e-5)
    assert got.sharding.is_equivalent_to(placed[0].sharding, kernel.ndim)


def test_no_gradient_passes_through_what_is_carried():
    def carried(kernel):
        _, (u, sigma) = spectral_norm(kernel, STATS, training=True)
        return jnp.sum(u) + sigma

    np.testing.assert_array_equal(jax.grad(carried)(KERNEL), 0)


def test_statistics_may_be_python_numbers_and_steps_any_integer():
    plain = SpectralStats([1.0] * 6, 1.0)
    got = spectral_norm(KERNEL, plain, training=True, n_steps=jnp.int32(2))
    expected = spectral_norm(KERNEL, STATS, training=True, n_steps=2)
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: spectral_norm(
                np.ones(3, np.float32), init_spectral_stats(KEY, 3), training=True
            ),
            ValueError,
            "kernel must have rank 2 or more",
        ),
        (
            lambda: spectral_norm(KERNEL, init_spectral_stats(KEY, 5), training=True),
            ValueError,
            r"use init_spectral_stats\(key, 6\)",
        ),
        (
            lambda: spectral_norm(KERNEL, STATS, training=True, n_steps=0),
            ValueError,
            "n_steps must be an integer, at least 1. Received n_steps=0",
        ),
        (
            lambda: spectral_norm(KERNEL, STATS, training=True, n_steps=1.5),
            ValueError,
            "n_steps must be an integer, at least 1. Received n_steps=1.5",
        ),
        (
            lambda: spectral_norm(KERNEL, None, training=True),
            TypeError,
            r"stats must be a SpectralStats. Received NoneType; start with init_spec",
        ),
        (
            lambda: spectral_norm(
                KERNEL, STATS._replace(u=jnp.ones(6, int)), training=True
            ),
            TypeError,
            r"of a floating-point dtype. Received stats.u of int32; start with init_",
        ),
        (
            lambda: spectral_norm(KERNEL, STATS._replace(u=None), training=True),
            TypeError,
            "stats.u must be an array. Received NoneType",
        ),
        (
            lambda: spectral_norm(
                KERNEL, STATS._replace(sigma=jnp.ones(3)), training=True
            ),
            ValueError,
            r"stats.sigma must be a scalar. Received stats.sigma with shape \(3,\)",
        ),
        (
            lambda: spectral_norm(jnp.ones((0, 6)), STATS, training=True),
            ValueError,
            r"kernel must have elements. Received shape \(0, 6\); leave out a layer",
        ),
        (
            lambda: spectral_norm(KERNEL, STATS, training=None),
            TypeError,
            "training must be True, False",
        ),
        (
            lambda: spectral_norm(KERNEL + 0j, STATS, training=True),
            TypeError,
            "kernel must be real",
        ),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_the_first_direction_is_random_and_of_unit_length():
    stats = init_spectral_stats(jax.random.key(0), 50)
    assert_allclose(np.linalg.norm(stats.u), 1, rtol=1e-6)
    assert np.std(stats.u) > 0.05
    other = init_spectral_stats(jax.random.key(1), 50)
    assert not np.allclose(stats.u, other.u)
    many = init_spectral_stats(KEY, 100_000, dtype=jnp.float16)
    assert_allclose(np.linalg.norm(many.u.astype(np.float32)), 1, rtol=1e-2)


def test_no_gradient_reaches_the_statistics():
    def loss(stats):
        return jnp.sum(spectral_norm(KERNEL, stats, training=False)[0] ** 2)

    gradients = jax.grad(loss)(init_spectral_stats(jax.random.key(0), 6))
    assert_allclose(gradients.u, 0)
    assert_allclose(gradients.sigma, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            (-2,),
            ValueError,
            "num_features must be at least 1. Received num_features=-2",
        ),
        ((2.0,), TypeError, "num_features must be an integer. Received float; pass"),
        ((True,), TypeError, "num_features must be an integer. Received bool; pass"),
        (
            (2, jnp.int32),
            TypeError,
            "dtype must be floating-point. Received int32; the",
        ),
        (
            (2, "foo"),
            TypeError,
            "dtype must be a dtype, or the name of one. Received dtype='foo'; the",
        ),
    ],
)
def test_wrong_arguments_of_the_start(arguments, error, text):
    num_features, dtype = (*arguments, jnp.float32)[:2]
    with pytest.raises(error, match=f"init_spectral_stats: {text}"):
        init_spectral_stats(KEY, num_features, dtype=dtype)


def test_one_feature_has_a_singular_vector():
    stats = init_spectral_stats(KEY, 1)
    np.testing.assert_allclose(np.abs(stats.u), [1], rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        (None, TypeError, "Received key=None; jax.random.key"),
        (0, TypeError, "Received key=0; jax.random.key"),
        (jnp.ones(3), TypeError, r"Received key with shape \(3,\); jax.random.key"),
        (
            jax.random.split(KEY),
            ValueError,
            r"Received key with shape \(2,\).*and jax.vmap takes",
        ),
    ],
)
def test_one_random_key_starts_it(key, error, text):
    text = f"init_spectral_stats: key must be one random key. {text}"
    with pytest.raises(error, match=text):
        init_spectral_stats(key, 3)
