"""Weights and masks: what they multiply, and what a weight of 0 hides."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import dtypes


def total_weight(
    x: jax.Array, weights: jax.Array | None, axis: tuple[int, ...]
) -> jax.Array:
    """Sum the weights over `axis` of `x`, kept; without weights, count the elements."""
    dtype = jnp.finfo(dtypes.statistics_dtype(x.dtype)).dtype
    sizes = (1,) * x.ndim if weights is None else weights.shape
    # The product is symbolic where shapes are, as in jax.export.
    repeats = jnp.asarray(math.prod(x.shape[a] for a in axis if sizes[a] == 1), dtype)
    if weights is None:
        return jnp.broadcast_to(repeats, sizes)
    return jnp.sum(weights, axis, dtype, keepdims=True) * repeats


def weighs_the_same_everywhere(x: jax.Array, weights: jax.Array | None) -> bool:
    """Whether every part of the shape of `x` has one total weight, which is not 0."""
    return weights is None and all(isinstance(n, int) and n for n in x.shape)


def weigh(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Return weights * x; an element of weight 0 is never multiplied."""
    if weights is None:
        return x
    x = jnp.where(_positive(weights), x, 0)
    return x if weights.dtype == bool else x * weights


def weigh_linearly(t: jax.Array, weights: jax.Array | None, x: jax.Array) -> jax.Array:
    """Return weights * t, whose derivative in a weight of 0 is t where `x` is finite.

    Linear in `t`: which elements must not be multiplied is decided by `x`.
    """
    if weights is None or weights.dtype == bool:
        return weigh(t, weights)
    return replace_hidden(t, 0, x, weights) * weights


def deviations(
    x: jax.Array, shift: jax.Array, mean: ArrayLike, weights: jax.Array | None
) -> jax.Array:
    """Return x - shift in the dtype of statistics; `mean` is that of x - shift."""
    return replace_hidden(x.astype(shift.dtype) - shift, mean, x, weights)


def replace_hidden(
    v: jax.Array, mean: ArrayLike, x: jax.Array, weights: jax.Array | None
) -> jax.Array:
    """Return `v`, but the mean where `x` is not finite and has weight 0.

    Derivatives replace such an element as well. Otherwise 0 * NaN would reach the
    outputs and gradients of others.
    """
    if weights is None:
        return v
    return jnp.where(_positive(weights) | jnp.isfinite(x), v, mean)


def _positive(weights: jax.Array) -> jax.Array:
    return weights if weights.dtype == bool else weights > 0
