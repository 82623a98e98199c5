"""Running statistics: start, update.

The running mean and variance are averages over batches, and `weight` is how much
evidence they hold: 0 for none, 1 for the whole of an exponential average, n for an
equal-weight average over n batches. Dividing by it is what debiases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, devices, options
from jaxnorm.moments import Moments
from jaxnorm.shifted import reciprocal


class NormStats(NamedTuple):
    """Running statistics of a normalization.

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
        batch's statistics, and averages are unbiased from then on. With 1 they are the
        plain exponential average from (0, 1) of PyTorch and Flax.
      dtype: dtype of the mean; at least float32.

    Returns:
      NormStats with mean and var of shape `num_features`, and a scalar weight.

    Raises:
      TypeError: if `num_features` holds no integers, or `dtype` fewer digits than
        float32.
      ValueError: if a size or `prior_weight` is negative.

    Example:
      >>> import jaxnorm as jn
      >>> print(jn.init_stats(2))
      NormStats(mean=Array([0., 0.], dtype=float32), var=Array([1., 1.], dtype=float32),
      weight=Array(0., dtype=float32))
    """
    shape = (
        tuple(num_features) if isinstance(num_features, Sequence) else (num_features,)
    )
    dtype = options.as_dtype(dtype, caller="init_stats")
    if dtype != arguments.statistics_dtype(dtype):
        raise TypeError(
            "init_stats: statistics need at least float32, or small updates are lost. "
            f"Received dtype={dtype.name}; the input may still be of half precision."
        )
    if not all(isinstance(n, int | np.integer) or is_symbolic_dim(n) for n in shape):
        raise TypeError(
            "init_stats: num_features must be an integer, or a sequence of them. "
            f"Received {type(num_features).__name__}; pass the size of the feature "
            "axis, x.shape[-1]."
        )
    if any(not is_symbolic_dim(n) and n < 0 for n in shape):
        raise ValueError(
            "init_stats: num_features must not be negative. Received "
            f"num_features={num_features}; pass the size of the feature axis, "
            "x.shape[-1]."
        )
    options.check_prior_weight(prior_weight, caller="init_stats")
    real = jnp.finfo(dtype).dtype
    return NormStats(
        jnp.zeros(shape, dtype), jnp.ones(shape, real), jnp.asarray(prior_weight, real)
    )


def update_stats(
    stats: NormStats,
    moments: Moments,
    *,
    decay: ArrayLike | None = 0.99,
    ddof: int = 0,
) -> NormStats:
    r"""Move running statistics towards the moments of a batch.

    .. math::
      w' = \alpha w + (1 - \alpha), \quad
      \mu' = \frac{\alpha w \mu + (1 - \alpha) \mu_B}{w'}, \quad
      \sigma'^2 = \frac{\alpha w \sigma^2 + (1 - \alpha) \sigma_B^2}{w'}

    With `decay=None` all batches count the same: w' = w + 1, and the weights of old and
    new are w / w' and 1 / w'.

    A batch that cannot be trusted changes nothing: one with a statistic that is not
    finite, or with no more than `ddof` elements. That holds inside jit as well. With
    one weight per feature, every feature is trusted or not by itself; so features that
    are spread over devices need not ask one another.

    A scalar weight counts batches for all features together. If a feature is fully
    masked in the first batch, its initial value then counts as data; where that can
    happen, use one weight per feature, `stats._replace(weight=jnp.zeros(n))`.

    The mean is kept as one number: near 1e6 standard deviations a float32 moves in
    steps of 0.06 of them. Data so far from zero need float64 statistics, or to be
    centered first.

    Args:
      stats: running statistics.
      moments: the moments of a batch, in shapes that broadcast to those of `stats`.
      decay: the weight of the old value, in [0, 1], or None. PyTorch's momentum is
        1 - decay, Flax's is decay.
      ddof: 1 divides the batch's m2 by count - 1 (PyTorch), 0 by count.

    Returns:
      NormStats of the same shapes and dtypes as `stats`.

    Raises:
      TypeError: if `stats` is not a NormStats, or of half precision, or `decay` is not
        a number.
      ValueError: if `decay` is outside [0, 1], or `ddof` is neither 0 nor 1, or the
        shapes of `moments` and `stats` disagree.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> moments = jn.compute_moments(jnp.array([[1.0], [3.0]]), axis=0)
      >>> stats = jn.update_stats(jn.init_stats(1), moments)
      >>> print(stats.mean, stats.var)
      [2.] [1.]

    Reference:
      Ioffe and Szegedy, 2015, arXiv:1502.03167; the debiasing is that of Kingma and Ba,
      Adam, 2015, arXiv:1412.6980.
    """
    caller = "update_stats"
    decay = options.check_decay(decay, caller=caller)
    ddof = options.check_ddof(ddof, caller=caller)
    stats, moments = arguments.check_update(stats, moments, caller=caller)
    return move(stats, moments, decay=decay, ddof=ddof)


def move(
    stats: NormStats, moments: Moments, *, decay: ArrayLike | None, ddof: int
) -> NormStats:
    """Do what `update_stats` does; its arguments have been checked."""
    var = moments.m2 * reciprocal(jnp.maximum(moments.count - ddof, 0))
    finite = jnp.isfinite(moments.mean) & jnp.isfinite(var)
    if not stats.weight.ndim:
        finite = jnp.all(finite)

    if decay is None:
        gained: ArrayLike = 1
        weight = jnp.asarray(stats.weight + 1)
    else:
        # Written so that a weight of exactly 1 stays exactly 1.
        gained = 1 - decay
        weight = jnp.asarray(stats.weight + gained * (1 - stats.weight))
    # decay=1 from weight 0 has seen nothing.
    trusted = finite & (moments.count > ddof) & (weight > 0)
    share = jnp.asarray(gained / jnp.where(weight > 0, weight, 1))

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        # A step towards the batch: what is there already stays, however the weight is
        # rounded. Two products would drift, by 1 / (1 - decay) times their rounding.
        new, part, yes = (devices.shard_like(v, old) for v in (new, share, trusted))
        moved = jnp.where(part == 1, new, old + part * (new - old))
        return jnp.where(yes, moved, old).astype(old.dtype)

    trusted_at_all = trusted if stats.weight.ndim else jnp.any(trusted)
    gains = devices.shard_like(trusted_at_all, stats.weight)
    return NormStats(
        average(stats.mean, moments.mean),
        average(stats.var, var),
        jnp.where(gains, weight, stats.weight).astype(stats.weight.dtype),
    )
