"""Weight norm and weight standardization against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxnorm import weight_norm, weight_standardization

KERNEL = np.random.default_rng(0).normal(0.3, 1, (3, 3, 4, 6)).astype(np.float32)
SCALE = np.linspace(-1, 2, 6).astype(np.float32)
FUNCTIONS = [weight_norm, weight_standardization]


@pytest.mark.parametrize(
    ("feature_axis", "reduced"),
    [(-1, (0, 1, 2)), ((2, 3), (0, 1)), (1, (0, 2, 3)), ((0, 3), (1, 2)), (None, None)],
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


@pytest.mark.parametrize("function", FUNCTIONS)
def test_features_may_come_first(function):
    """As in the kernels of PyTorch."""
    first = jnp.moveaxis(KERNEL, -1, 0)
    w = function(first, SCALE, feature_axis=0)
    assert_allclose(jnp.moveaxis(w, 0, -1), function(KERNEL, SCALE), atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
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


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_kernel_of_zeros_has_finite_values_and_gradients(function):
    zeros = jnp.zeros((4, 3))
    assert_allclose(function(zeros), 0)
    assert np.isfinite(jax.grad(lambda v: function(v).sum())(zeros)).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_overflow_is_shown(function):
    kernel = np.array([[1e20, 1], [-1e20, 3]], np.float32)
    np.testing.assert_array_equal(np.isfinite(function(kernel)), [[False, True]] * 2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_half_precision_is_computed_in_float32(function):
    half = KERNEL.astype(jnp.bfloat16)
    y = function(half)
    assert y.dtype == jnp.bfloat16
    exact = function(half.astype(jnp.float32)).astype(jnp.bfloat16)
    assert (y == exact).all()
    assert function(half, dtype=jnp.float32).dtype == jnp.float32


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
            r"scale must have shape \(6,\), the size of axis 3 of kernel, or",
        ),
        (lambda: weight_norm(KERNEL, feature_axis=4), ValueError, "feature_axis must"),
        (lambda: weight_norm(KERNEL, eps=0), ValueError, "eps must be positive"),
        (
            lambda: weight_standardization(np.ones(3, np.float32)),
            ValueError,
            "at least one axis must be reduced",
        ),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()
