"""Arithmetic at the edges, in the forms of all platforms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.arithmetic import show_overflow
from tests.conftest import every_platform

SUMS = jnp.asarray([0.0, 1.2e-38, 1e-30, 2.5, 3.4028235e38, jnp.inf, jnp.nan])


@every_platform
@pytest.mark.parametrize(
    "transform", [jax.jit, lambda f: jax.jit(jax.vmap(f)), lambda f: f]
)
def test_infinite_sums_are_nan_and_others_as_they_were(transform, platform):
    shown = transform(show_overflow)(SUMS)
    np.testing.assert_array_equal(shown, np.where(np.isinf(SUMS), np.nan, SUMS))
    slopes = jax.jit(jax.jacfwd(show_overflow))(SUMS[:4])
    chex.assert_trees_all_equal(slopes, jnp.eye(4))


@every_platform
def test_float64_sums_go_further(platform):
    with jax.enable_x64(True):
        large = np.asarray([1e300, np.inf])
        shown = jax.jit(show_overflow)(large)
        np.testing.assert_array_equal(shown, [1e300, np.nan])
