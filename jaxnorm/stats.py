"""Running statistics: the type, where they start, and what must hold of them.

The running mean and variance are averages over batches, and `weight` is how much
evidence they hold: 0 for none, 1 for the whole of an exponential average, n for an
equal-weight average over n batches. Dividing by it is what debiases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, axes, dtypes, options
from jaxnorm.exporting import serializable
from jaxnorm.moments import Moments

OF_REPLICAS = "jaxnorm.merge_stats merges stacked ones, jax.vmap maps over them"


@serializable
class NormStats(NamedTuple):
    """Running statistics of a normalization.

    What a checkpoint restores as a dictionary is `NormStats(**restored)`. Programs that
    take or return one can be serialized by `jax.export`, like those of Moments and
    SpectralStats; this needs the package flatbuffers.

    Attributes:
      mean: running mean, one value per feature.
      var: running variance, one value per feature; always real.
      weight: how much evidence they hold; a scalar, or one value per feature.
    """

    mean: jax.Array
    var: jax.Array
    weight: jax.Array


def init_stats(
    num_features: int | Sequence[int],
    *,
    prior_weight: ArrayLike = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> NormStats:
    """Return running statistics of mean 0 and variance 1.

    Args:
      num_features: number of features, or their shape for several feature axes.
      prior_weight: how much the start counts. With 0 the first update gives the first
        batch's statistics (of a single row, a variance of 0), and averages are unbiased
        from then on. With 1 they are the plain exponential average from (0, 1) of
        PyTorch and Flax. One number, or one for every feature, which may then be seen
        by different batches (see `update_stats`).
      dtype: dtype of the mean; at least float32.

    Returns:
      NormStats with mean and var of shape `num_features`, and the weight of
      `prior_weight`'s.

    Raises:
      TypeError: if `num_features` holds no integers, `prior_weight` no real numbers, or
        `dtype` fewer digits than float32.
      ValueError: if a size or `prior_weight` is negative, or the shape of
        `prior_weight` is neither () nor `num_features`.

    Example:
      >>> import jaxnorm as jn
      >>> print(jn.init_stats(2))
      NormStats(mean=Array([0., 0.], dtype=float32), var=Array([1., 1.], dtype=float32),
      weight=Array(0., dtype=float32))
    """
    shape = options.check_num_features(num_features, caller="init_stats")
    dtype = options.as_dtype(dtype, caller="init_stats")
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            "init_stats: statistics are floating-point or complex numbers. Received "
            f"dtype={dtype.name}; the usual one is float32."
        )
    if dtype != dtypes.statistics_dtype(dtype):
        raise TypeError(
            "init_stats: statistics need at least float32, or small updates are lost. "
            f"Received dtype={dtype.name}; the input may still be of half precision."
        )
    options.check_prior_weight(prior_weight, shape, dtype, caller="init_stats")
    real = jnp.finfo(dtype).dtype
    return NormStats(
        jnp.zeros(shape, dtype), jnp.ones(shape, real), jnp.asarray(prior_weight, real)
    )


def check_stats(stats: Any, *, caller: str) -> NormStats:
    """Return running statistics, of arrays, if their shapes go together."""
    stats = as_arrays(stats, caller=caller)
    mean, var, weight = (leaf.shape for leaf in stats)
    if var != mean or weight not in ((), mean):
        mend = "start with jaxnorm.init_stats(num_features)"
        if var == mean and weight == mean[:1]:
            mend = OF_REPLICAS
        raise ValueError(
            f"{caller}: mean and var must have one shape, and weight that or none. "
            f"Received (mean, var, weight) of shapes {mean}, {var}, {weight}; {mend}."
        )
    return stats


def check_features(
    stats: Any, x: jax.Array, features: tuple[int, ...], *, caller: str
) -> NormStats:
    """Return running statistics, of arrays, if they fit the features of `x`."""
    stats = check_stats(stats, caller=caller)
    sizes = tuple(x.shape[axis] for axis in features)
    if stats.mean.shape != sizes:
        raise ValueError(
            f"{caller}: stats must have shape {sizes}, {axes.sizes_in_words(features)} "
            f"of x. Received stats with shape {stats.mean.shape} for x with shape "
            f"{x.shape}; {_mend_of_features(stats, x, sizes)}."
        )
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(stats.mean):
        raise TypeError(
            f"{caller}: complex input has a complex mean. Received x of {x.dtype} and "
            f"stats.mean of {stats.mean.dtype}; use jaxnorm.init_stats(..., "
            f"dtype={x.dtype})."
        )
    if jnp.iscomplexobj(stats.mean) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"{caller}: real input has a real mean. Received x of {x.dtype} and "
            f"stats.mean of {stats.mean.dtype}; use jaxnorm.init_stats(...), or "
            "convert x to a complex dtype."
        )
    return stats


def _mend_of_features(stats: NormStats, x: jax.Array, sizes: tuple[int, ...]) -> str:
    """Say what the statistics would fit: an axis, if there is one, or how to start."""
    if stats.mean.shape[1:] == sizes:
        return OF_REPLICAS
    fitting = [a for a, n in enumerate(x.shape) if stats.mean.shape == (n,)]
    start = f"jaxnorm.init_stats({sizes[0] if len(sizes) == 1 else sizes})"
    if len(fitting) == 1:
        return f"use {start}, or feature_axis={fitting[0]}"
    return f"use {start}, or another feature_axis"


def check_precision(stats: NormStats, *, caller: str) -> None:
    """Raise unless running statistics have the digits to be updated."""
    for name, leaf in stats._asdict().items():
        if leaf.dtype != dtypes.statistics_dtype(leaf.dtype):
            raise TypeError(
                f"{caller}: running statistics need at least float32, or small updates "
                f"are lost. Received stats.{name} of {leaf.dtype}; leave them out "
                "where a model is converted to half precision."
            )


def as_arrays(stats: Any, *, caller: str) -> NormStats:
    """Return running statistics, of arrays of dtypes that can be averaged."""
    if not isinstance(stats, NormStats):
        mend = "start with jaxnorm.init_stats(num_features)"
        if isinstance(stats, Moments):
            mend = "update_stats(stats, moments) moves one by moments"
        elif caller == "batch_norm" and isinstance(stats, jax.Array | np.ndarray):
            mend = "it comes before scale and bias; " + mend
        elif type(stats) in (dict, tuple, list):  # as checkpoints may restore it
            stars = "**" if isinstance(stats, dict) else "*"
            more = ", weight=jnp.ones(())" if len(stats) == 2 else ""
            mend = f"jaxnorm.NormStats({stars}stats{more}) puts its parts together"
        raise TypeError(
            f"{caller}: stats must be a NormStats. Received {type(stats).__name__}; "
            f"{mend}."
        )
    mean, var, weight = arguments.as_arrays(stats, caller=caller, name="stats")
    for name, leaf in (("mean", mean), ("var", var)):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{caller}: running statistics must be of a floating-point dtype. "
                f"Received stats.{name} of {leaf.dtype}; convert it first, for example "
                "to float32."
            )
    real = {"stats.var": var, "stats.weight": weight}
    arguments.check_real("a variance and a weight are", real, caller=caller)
    # An integer could not grow by 1 - decay, and one of Python has no dtype of its own.
    if jax.typeof(weight).weak_type or not jnp.issubdtype(weight.dtype, jnp.inexact):
        weight = weight.astype(jnp.finfo(dtypes.statistics_dtype(var.dtype)).dtype)
    return NormStats(mean, var, weight)
