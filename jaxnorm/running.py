"""Running statistics: how the moments of a batch move them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm import arguments, options, sharding
from jaxnorm.arithmetic import reciprocal
from jaxnorm.moments import Moments, check_moments
from jaxnorm.stats import NormStats, check_precision, check_stats

# A count that exceeds `ddof` by less than this share of it may do so by rounding.
ROUNDING = 1e-5


def update_stats(
    stats: NormStats,
    moments: Moments,
    *,
    decay: ArrayLike | None = 0.99,
    ddof: int = 0,
) -> NormStats:
    """Move running statistics towards the moments of a batch.

        weight' = decay * weight + (1 - decay)
        mean'   = (decay * weight * mean + (1 - decay) * batch_mean) / weight'
        var'    = (decay * weight * var + (1 - decay) * batch_var) / weight'

    With `decay=None` all batches count the same:

        weight' = weight + 1
        mean'   = (weight * mean + batch_mean) / weight'
        var'    = (weight * var + batch_var) / weight'

    A batch changes nothing if one of its statistics is not finite, or if it has no more
    than `ddof` elements, to rounding. That holds inside jit as well. With one weight
    per feature, this is decided feature by feature, so features that are sharded over
    devices need no communication.

    A scalar weight counts batches for all features together. If a feature is fully
    masked in the first batch, its initial value then counts as data; where that can
    happen, use one weight per feature, `init_stats(n, prior_weight=jnp.zeros(n))`.

    The mean is a single number: in float32, near 1e6 standard deviations, it moves in
    steps of 0.06 of them. Data so far from zero need float64 statistics, or to be
    centered first.

    Args:
      stats: running statistics.
      moments: the moments of a batch, in shapes that broadcast to those of `stats`.
      decay: the weight of the old value, in [0, 1], or None. PyTorch's momentum is
        1 - decay, Flax's is decay.
      ddof: 1 divides the batch's m2 by count - 1 (PyTorch), 0 by count.

    Returns:
      NormStats of the same shapes and dtypes as `stats` (an integer weight becomes
      floating-point, once).

    Raises:
      TypeError: if `stats` is not a NormStats, or of half precision, `moments` are not
        Moments, or complex where `stats` are real, or `decay` is not a number.
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
    stats, moments = _check_update(stats, moments, caller=caller)
    return move(stats, moments, decay=decay, ddof=ddof)


def move(
    stats: NormStats, moments: Moments, *, decay: ArrayLike | None, ddof: int
) -> NormStats:
    """Do what `update_stats` does; its arguments have been checked."""
    gained = 1 if decay is None else 1 - decay
    return _move(stats, moments, gained, decay is None, ddof)


# One program outside of jit, and traced once for all layers of a shape.
@partial(jax.jit, static_argnums=(3, 4), inline=True)
def _move(
    stats: NormStats, moments: Moments, gained: ArrayLike, cumulative: bool, ddof: int
) -> NormStats:
    """Move by the weight that a batch gains; if `cumulative` the old keeps its own."""
    divisor = moments.count - ddof
    enough = divisor > ROUNDING * moments.count  # not so if infinite
    var = moments.m2 * reciprocal(jnp.maximum(divisor, 0))
    finite = jnp.isfinite(moments.mean) & jnp.isfinite(var)
    if not stats.weight.ndim:
        finite = jnp.all(finite)

    if cumulative:
        weight = stats.weight + gained
    else:
        # Written so that a weight of exactly 1 stays exactly 1.
        weight = stats.weight + gained * (1 - stats.weight)
    # decay=1 from weight 0 has seen nothing.
    trusted = finite & enough & (weight > 0)
    share = jnp.asarray(gained / jnp.where(weight > 0, weight, 1))

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        # A step towards the batch: what is there already stays, however the weight is
        # rounded. Two products would drift, by 1 / (1 - decay) times their rounding.
        new, part, yes = (sharding.shard_like(v, old) for v in (new, share, trusted))
        new = jnp.where(yes, new, old)
        # What holds no evidence may be anything, and is never multiplied.
        step = new - old
        step = jnp.where(jnp.isfinite(step), step, 0)
        # The whole step ends at the batch, without a rounding, and has a derivative.
        moved = jnp.where(part == 1, new + (part - 1) * step, old + part * step)
        return moved.astype(old.dtype)

    trusted_at_all = trusted if stats.weight.ndim else jnp.any(trusted)
    gains = sharding.shard_like(trusted_at_all, stats.weight)
    return NormStats(
        average(stats.mean, moments.mean),
        average(stats.var, var),
        jnp.where(gains, weight, stats.weight).astype(stats.weight.dtype),
    )


def _check_update(
    stats: NormStats, moments: Moments, *, caller: str
) -> tuple[NormStats, Moments]:
    """Return both, of arrays, if the moments are those of a batch that can move it."""
    stats = check_stats(stats, caller=caller)
    check_precision(stats, caller=caller)
    whole = check_moments(moments, caller=caller)
    for name in ("mean", "m2", "count"):
        shape = getattr(whole, name).shape
        if not arguments.fits(shape, stats.mean.shape):
            raise ValueError(
                f"{caller}: moments must broadcast to the statistics. Received "
                f"moments.{name} with shape {shape} for stats with shape "
                f"{stats.mean.shape}; reduce every axis but the features."
            )
    if jnp.iscomplexobj(whole.mean) and not jnp.iscomplexobj(stats.mean):
        dtype = whole.mean.dtype
        raise TypeError(
            f"{caller}: complex moments have a complex mean. Received moments.mean of "
            f"{dtype} and stats.mean of {stats.mean.dtype}; use "
            f"jaxnorm.init_stats(..., dtype={dtype})."
        )
    return stats, whole
