"""Reparametrized kernels against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxnorm.weight_norms import (
    SpectralStats,
    init_spectral_stats,
    spectral_norm,
    weight_norm,
    weight_standardization,
)

KERNEL = np.random.default_rng(0).normal(0.3, 1, (3, 3, 4, 6)).astype(np.float32)
SCALE = np.linspace(-1, 2, 6).astype(np.float32)


@pytest.mark.parametrize(
    ("feature_axis", "reduced"), [(-1, (0, 1, 2)), ((2, 3), (0, 1)), (None, None)]
)
def test_weight_norm_is_the_formula(feature_axis, reduced):
    v = KERNEL.astype(np.float64)
    expected = v / np.sqrt((v**2).sum(reduced, keepdims=True))
    assert_allclose(weight_norm(KERNEL, feature_axis=feature_axis), expected, rtol=1e-6)
    if feature_axis == -1:
        assert_allclose(weight_norm(KERNEL, SCALE), expected * SCALE, rtol=1e-6)


def test_weight_standardization_is_the_formula():
    v = KERNEL.astype(np.float64)
    spread = np.sqrt(v.var((0, 1, 2)) + 1e-5)
    expected = (v - v.mean((0, 1, 2))) / spread
    assert_allclose(weight_standardization(KERNEL), expected, rtol=2e-6, atol=1e-6)
    scaled = weight_standardization(KERNEL, SCALE, eps=1e-5)
    assert_allclose(scaled, expected * SCALE, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("feature_axis", [-1, 0, 2])
def test_spectral_norm_finds_the_largest_singular_value(feature_axis):
    size = KERNEL.shape[feature_axis]
    stats = init_spectral_stats(jax.random.key(0), size)
    kernel, stats = spectral_norm(
        KERNEL, stats, training=True, n_steps=200, feature_axis=feature_axis
    )
    v = np.moveaxis(KERNEL.astype(np.float64), feature_axis, -1).reshape(-1, size)
    sigma = np.linalg.svd(v, compute_uv=False)[0]
    assert_allclose(stats.sigma, sigma, rtol=1e-5)
    assert_allclose(np.linalg.norm(stats.u), 1, rtol=1e-6)
    assert_allclose(kernel, KERNEL / sigma, rtol=1e-5)


def test_spectral_norm_converges_from_step_to_step():
    stats = init_spectral_stats(jax.random.key(0), 6)
    step = jax.jit(lambda stats: spectral_norm(KERNEL, stats, training=True)[1])
    for _ in range(200):
        stats = step(stats)
    once, kept = spectral_norm(KERNEL, stats, training=False)
    sigma = np.linalg.svd(KERNEL.reshape(-1, 6).astype(np.float64))[1][0]
    assert_allclose(once, KERNEL / sigma, rtol=1e-5)
    assert kept.u is stats.u or (kept.u == stats.u).all()


def test_spectral_norm_takes_a_traced_flag():
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
    _, stats = spectral_norm(kernel, stats, training=True, n_steps=300)

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


@pytest.mark.parametrize("function", [weight_norm, weight_standardization])
def test_gradients_are_those_of_the_formula(function):
    target = jax.random.normal(jax.random.key(1), KERNEL.shape)

    def plain(v):
        if function is weight_norm:
            w = v / jnp.sqrt(jnp.sum(v**2, (0, 1, 2)))
        else:
            w = (v - v.mean((0, 1, 2))) / jnp.sqrt(v.var((0, 1, 2)) + 1e-5)
        return jnp.sum(target * w * SCALE)

    def ours(v):
        return jnp.sum(target * function(v, SCALE))

    actual, expected = (jax.jit(jax.grad(f))(KERNEL) for f in (ours, plain))
    assert_allclose(actual, expected, atol=1e-5)


def test_a_kernel_of_zeros_has_finite_values_and_gradients():
    zeros = jnp.zeros((4, 3))
    stats = init_spectral_stats(jax.random.key(0), 3)
    for function in (
        weight_norm,
        weight_standardization,
        lambda v: spectral_norm(v, stats, training=True)[0],
    ):
        assert_allclose(function(zeros), 0)
        assert np.isfinite(jax.grad(lambda v, f=function: f(v).sum())(zeros)).all()


def test_half_precision_is_computed_in_float32():
    half = KERNEL.astype(jnp.bfloat16)
    for function in (weight_norm, weight_standardization):
        y = function(half)
        assert y.dtype == jnp.bfloat16
        exact = function(half.astype(jnp.float32)).astype(jnp.bfloat16)
        assert (y == exact).all()
        assert function(half, dtype=jnp.float32).dtype == jnp.float32
    stats = init_spectral_stats(jax.random.key(0), 6)
    y, new = spectral_norm(half, stats, training=True)
    assert y.dtype == jnp.bfloat16
    assert new.u.dtype == new.sigma.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: weight_norm(np.ones((2, 3), int)),
            TypeError,
            "weight_norm: kernel must",
        ),
        (
            lambda: weight_norm(KERNEL, np.ones(5)),
            ValueError,
            r"scale must have shape \(6,\), the sizes of axes \(3,\) of kernel, or",
        ),
        (lambda: weight_norm(KERNEL, feature_axis=4), ValueError, "feature_axis must"),
        (lambda: weight_norm(KERNEL, eps=0), ValueError, "eps must be positive"),
        (
            lambda: weight_standardization(np.ones(3, np.float32)),
            ValueError,
            "at least one axis must be reduced",
        ),
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


KEY = jax.random.key(0)
STATS = SpectralStats(jnp.ones(6), jnp.ones(()))


def test_the_first_direction_is_random_and_of_unit_length():
    stats = init_spectral_stats(jax.random.key(0), 50)
    assert_allclose(np.linalg.norm(stats.u), 1, rtol=1e-6)
    assert np.std(stats.u) > 0.05
    other = init_spectral_stats(jax.random.key(1), 50)
    assert not np.allclose(stats.u, other.u)


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
        (
            (2, jnp.int32),
            TypeError,
            "dtype must be floating-point. Received int32; the",
        ),
    ],
)
def test_wrong_arguments_of_the_start(arguments, error, text):
    num_features, dtype = (*arguments, jnp.float32)[:2]
    with pytest.raises(error, match=f"init_spectral_stats: {text}"):
        init_spectral_stats(KEY, num_features, dtype=dtype)
