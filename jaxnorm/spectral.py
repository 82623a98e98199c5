"""Spectral norm: a kernel divided by its largest singular value.

The singular vector is carried from step to step, as running statistics are: state in,
state out. One step of power iteration per call keeps up with a kernel in training.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, axes, dtypes, options, sharding
from jaxnorm.arithmetic import square
from jaxnorm.exporting import serializable
from jaxnorm.options import Flag


@serializable
class SpectralStats(NamedTuple):
    """What spectral norm carries from step to step.

    Attributes:
      u: estimate of the singular vector on the side of the features, of unit length.
      sigma: estimate of the largest singular value; a scalar.
    """

    u: jax.Array
    sigma: jax.Array


def init_spectral_stats(
    key: jax.Array, num_features: int, *, dtype: DTypeLike = jnp.float32
) -> SpectralStats:
    """Return a random direction and a singular value of 1.

    Args:
      key: one random key.
      num_features: size of the feature axis of the kernel.
      dtype: dtype of both; a floating-point one.

    Returns:
      SpectralStats with `u` of shape (num_features,).

    Raises:
      TypeError: if `num_features` is not an integer, `dtype` is not floating-point, or
        `key` is not a random key.
      ValueError: if `num_features` is below 1, or `key` holds several keys.

    Example:
      >>> import jax
      >>> import jaxnorm as jn
      >>> jn.init_spectral_stats(jax.random.key(0), 3).u.shape
      (3,)
    """
    caller = "init_spectral_stats"
    if not options.is_integer(num_features):
        raise TypeError(
            f"{caller}: num_features must be an integer. Received "
            f"{type(num_features).__name__}; pass the size of the feature axis, "
            "kernel.shape[-1]."
        )
    if num_features < 1:
        raise ValueError(
            f"{caller}: num_features must be at least 1. Received "
            f"num_features={num_features}; pass kernel.shape[-1]."
        )
    dtype = options.as_dtype(dtype, caller=caller)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{caller}: dtype must be floating-point. Received {dtype.name}; the usual "
            "one is float32."
        )
    wide = dtypes.statistics_dtype(dtype)
    try:
        u = jax.random.normal(key, (num_features,), wide)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{caller}: key must be one random key. {options.received('key', key)}; "
            "jax.random.key(0) makes one, and jax.vmap takes several."
        ) from None
    u = u * lax.rsqrt(jnp.sum(square(u)))
    return SpectralStats(u.astype(dtype), jnp.ones((), dtype))


def spectral_norm(
    kernel: ArrayLike,
    stats: SpectralStats,
    *,
    training: Flag,
    n_steps: int = 1,
    eps: ArrayLike = 1e-12,
    feature_axis: int = -1,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, SpectralStats]:
    """Divide a kernel by its largest singular value.

        w = kernel / sigma
        sigma = left^T V u

    V is the kernel as a matrix, and u, `stats.u`, its right singular vector. One step
    of power iteration, before sigma is computed, is

        left = V u / |V u|
        u    = V^T left / |V^T left|

    No gradient passes through u and left. A kernel of zeros is returned unchanged. It
    leaves the direction of u as it is, and so does one that is not finite.

    Args:
      kernel: array of a floating-point dtype and rank 2 or more; axes other than
        `feature_axis` become the rows of V.
      stats: from `init_spectral_stats` or the previous step.
      training: whether to return the new `stats`, or `stats` unchanged. A Python bool,
        or a traced one. The power iteration runs in both, so the output is the same.
        (PyTorch does not iterate in evaluation.)
      n_steps: steps of power iteration, at least 1.
      eps: a vector of no greater squared length counts as zero; positive.
      feature_axis: the axis of the features.
      dtype: dtype of the output; None is that of `kernel`.

    Returns:
      The kernel divided by sigma, and the new statistics.

    Raises:
      TypeError: if `kernel` is not floating-point, `stats` is not a SpectralStats,
        `dtype` cannot hold the output, `training` is not a bool, or `eps` is not a
        number.
      ValueError: if `kernel` is empty or has rank below 2, `stats.u` has another size
        than `feature_axis`, `stats.sigma` is no scalar, `n_steps` is below 1, or `eps`
        is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> stats = jn.init_spectral_stats(jax.random.key(0), 2)
      >>> kernel, stats = jn.spectral_norm(4 * jnp.eye(2), stats, training=True)
      >>> print(stats.sigma.round(3))
      4.0

    Reference:
      Miyato, Kataoka, Koyama and Yoshida, Spectral normalization for generative
      adversarial networks, 2018, arXiv:1802.05957.
    """
    caller = "spectral_norm"
    kernel = arguments.check_input(kernel, caller=caller, name="kernel")
    dtype = options.check_dtype(dtype, kernel, caller=caller)
    eps = options.check_eps(eps, caller=caller, usual="1e-12")
    training = options.check_training(training, caller=caller)
    features = axes.canonicalize_axes(
        feature_axis, kernel.ndim, caller=caller, name="feature_axis"
    )
    axis = axes.single_axis(features, caller=caller)
    n_steps = _check_steps(n_steps, caller)
    stats = _check_spectral(kernel, stats, axis, caller)

    return _divide(kernel, stats, training, eps, n_steps, features, dtype)


@partial(jax.jit, static_argnums=(4, 5, 6), inline=True)  # see normalize_by_statistics
def _divide(
    kernel: jax.Array,
    stats: SpectralStats,
    training: bool | jax.Array,
    eps: ArrayLike,
    n_steps: int,
    features: tuple[int, ...],
    dtype: np.dtype,
) -> tuple[jax.Array, SpectralStats]:
    """Iterate, and divide by the singular value."""
    v = kernel.astype(dtypes.statistics_dtype(kernel.dtype))
    # The singular vectors are constants: sigma is linear in the kernel, and this is
    # its derivative where they are exact.
    constant, u = lax.stop_gradient((v, stats.u))
    rows = axes.complement(features, kernel.ndim)
    right = u.reshape(-1).astype(v.dtype)
    right = _unit(right, 0.0, otherwise=right)
    for _ in range(n_steps):
        image = _product(constant, right, features)
        left = _unit(image, eps, otherwise=jnp.zeros_like(image))
        image = _product(constant, left, rows)
        right = _unit(image, eps, otherwise=sharding.shard_like(right, image))
    sigma = jnp.sum(left * _product(v, right, features))
    u = sharding.shard_like(right.reshape(u.shape).astype(u.dtype), stats.u)
    new = SpectralStats(u, lax.stop_gradient(sigma).astype(stats.sigma.dtype))
    stats = jax.tree.map(lambda a, b: jnp.where(training, a, b), new, stats)
    return (v / jnp.where(sigma != 0, sigma, 1)).astype(dtype), stats


def _unit(vector: jax.Array, eps: ArrayLike, *, otherwise: jax.Array) -> jax.Array:
    """Return the vector at length 1, where its length is finite and not about 0."""
    largest = jnp.max(jnp.abs(vector))  # so that no square overflows
    scaled = vector / jnp.where(largest > 0, largest, 1)
    squared = jnp.sum(square(scaled))
    has_length = (largest * jnp.sqrt(squared) > jnp.sqrt(eps)) & jnp.isfinite(largest)
    return jnp.where(has_length, scaled * lax.rsqrt(squared), otherwise)


def _product(v: jax.Array, vector: jax.Array, axis: tuple[int, ...]) -> jax.Array:
    """Sum v * vector over `axis` of v, the axes of the vector, in full precision.

    The result is sharded as v is along the other axes. With the vector first, XLA:CPU
    need not transpose v.
    """
    left = axes.complement(axis, v.ndim)
    return lax.dot_general(
        vector,
        v,
        ((tuple(range(vector.ndim)), axis), ((), ())),
        precision=lax.Precision.HIGHEST,
        out_sharding=sharding.sharding_along(v, left),
    )


def _check_steps(n_steps: int, caller: str) -> int:
    """Return the steps of power iteration, if they are a number of 1 or more."""
    steps = options.whole_number(n_steps)
    if not steps:
        raise ValueError(
            f"{caller}: n_steps must be an integer, at least 1. Received "
            f"n_steps={n_steps}; {options.static_or('the usual value is 1', n_steps)}."
        )
    return steps


def _check_spectral(
    kernel: jax.Array, stats: Any, axis: int, caller: str
) -> SpectralStats:
    """Return the statistics, of arrays, if kernel and statistics fit each other."""
    if jnp.iscomplexobj(kernel):
        raise TypeError(
            f"{caller}: kernel must be real. Received {kernel.dtype}; normalize its "
            "real and imaginary parts, as one real kernel."
        )
    if kernel.ndim < 2:
        raise ValueError(
            f"{caller}: kernel must have rank 2 or more. Received shape {kernel.shape};"
            " biases and scales have no singular values to divide by."
        )
    if not kernel.size:
        raise ValueError(
            f"{caller}: kernel must have elements. Received shape {kernel.shape}; "
            "leave out a layer without inputs or outputs."
        )
    start = f"init_spectral_stats(key, {kernel.shape[axis]})"
    if not isinstance(stats, SpectralStats):
        raise TypeError(
            f"{caller}: stats must be a SpectralStats. Received "
            f"{type(stats).__name__}; start with {start}."
        )
    stats = SpectralStats(*arguments.as_arrays(stats, caller=caller, name="stats"))
    for name, leaf in stats._asdict().items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{caller}: stats must be of a floating-point dtype. Received "
                f"stats.{name} of {leaf.dtype}; start with {start}."
            )
    if stats.u.size != kernel.shape[axis]:
        raise ValueError(
            f"{caller}: stats.u must have one value per feature. Received stats.u with "
            f"shape {stats.u.shape} for a kernel of shape {kernel.shape} with features "
            f"along axis {axis}; use {start}."
        )
    if stats.sigma.shape:
        raise ValueError(
            f"{caller}: stats.sigma must be a scalar. Received stats.sigma with shape "
            f"{stats.sigma.shape}; use {start}, or jax.vmap over stacked kernels."
        )
    return stats
