"""Batch normalization: statistics over the batch, kept as running averages."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, axes, options, sharding
from jaxnorm.axes import Axes, AxisGroups, AxisName
from jaxnorm.moments import collapse
from jaxnorm.normalization import normalize_by_moments, normalize_by_statistics
from jaxnorm.norms.checks import check_operands
from jaxnorm.operands import Operands, Output
from jaxnorm.options import Activation, Flag
from jaxnorm.reduction import Reduction
from jaxnorm.running import move
from jaxnorm.stats import NormStats, check_features, check_precision


def batch_norm(
    x: ArrayLike,
    stats: NormStats,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    training: Flag,
    decay: ArrayLike | None = 0.99,
    eps: ArrayLike = 1e-5,
    feature_axis: Axes = -1,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
    ddof: int = 0,
    activation: Activation | None = None,
    add: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, NormStats]:
    """Normalize every feature by its statistics over the batch.

        y = activation(scale * (x - mean) / sqrt(var + eps) + bias + add)

    In training, mean and (biased) variance are those of the batch, over all axes but
    `feature_axis` and over all devices along `axis_name`; the running statistics move
    towards them. In evaluation they are the running statistics.

    Args:
      x: array of a floating-point or complex dtype, any rank.
      stats: running statistics, from `init_stats` or the previous step.
      scale: gamma; a scalar, the sizes of `feature_axis`, in increasing order of these
        axes, or any shape of the rank of `x` that broadcasts to it. None is 1.
      bias: beta, in the same shapes. None is 0.
      training: whether to normalize by the batch and update `stats`. A Python bool, or
        a traced one, for which both branches are compiled into one program.
      decay: the weight of the old running value, in [0, 1]; None is the equal-weight
        average over all batches so far. PyTorch's momentum is 1 - decay, Flax's is
        decay.
      eps: added to the variance; positive.
      feature_axis: axis, or axes, that keep statistics of their own.
      weights: bool mask or non-negative weights that broadcast to `x`. Give them the
        rank of `x` if a shorter shape could be meant for its first axes as well as for
        its last. Elements of weight 0 have no influence on anything else; they are
        normalized like the others (one that is not finite gives the bias). A feature
        that may be fully masked needs a weight of its own in `stats` (see
        `update_stats`).
      axis_name: name, or tuple of names, of the pmap, vmap or shard_map axes over which
        the batch is spread; statistics are pooled by their true counts, with one
        collective (two of more than 32 devices). If `x` is replicated along an axis,
        every copy is counted, which matters to `ddof=1`. The name has to be bound in
        evaluation too, where nothing is pooled. Not needed under plain jit on sharded
        arrays.
      axis_index_groups: groups of indices of `axis_name` that pool among themselves.
      ddof: 1 keeps the unbiased running variance, as PyTorch does; 0 the biased one.
        Weights count as frequencies: a batch of total weight 1 (to rounding) or less
        has no unbiased variance, and leaves `stats` as they are.
      activation: "relu", "silu" or "gelu" (its tanh approximation), applied to the
        output; None is the identity. The backward pass keeps nothing for it, but
        recomputes the output from `x`.
      add: array of the shape of `x` that is added before the activation; the other
        branch of a residual block. None is 0.
      dtype: dtype of the output; None is that of `x`. Computed in at least float32.

    Returns:
      The output, of the shape of `x`, and the new running statistics. Those are
      unchanged in evaluation, by a batch whose statistics are not finite, and by an
      empty one (all weights 0; the output is then that of `add` and the activation
      alone). Where the sum of squares overflows float32, the output is NaN (0 in half
      precision, if the last axis is reduced).

    Raises:
      TypeError: if `x` is neither floating-point nor complex, `stats` is not a
        NormStats or of half precision, `weights` are neither bool nor real, a parameter
        is complex though `x` is real, `dtype` cannot hold the output, `activation` is
        given for complex `x`, `training` is not a bool, or `decay` or `eps` is not a
        number.
      ValueError: if shapes disagree, an axis does not exist, `axis_name` is not bound,
        `weights` are negative or not finite, or could be meant for the first axes as
        well as for the last, `decay` is outside [0, 1], `ddof` is neither 0 nor 1,
        `eps` is not positive, or `activation` is unknown. (Values that are traced
        cannot be looked at.)

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> y, stats = jn.batch_norm(x, jn.init_stats(2), training=True)
      >>> print(y.round(3), stats.mean, stats.var)
      [[-1. -1.]
       [ 1.  1.]] [ 2. 20.] [  1. 100.]

    Reference:
      Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167.
    """
    caller = "batch_norm"
    x = arguments.check_input(x, caller=caller)
    dtype = options.check_dtype(dtype, x, caller=caller)
    decay = options.check_decay(decay, caller=caller)
    ddof = options.check_ddof(ddof, caller=caller)
    training = options.check_training(training, caller=caller)
    groups = axes.check_axis_name(axis_name, axis_index_groups, caller=caller)
    features = axes.canonicalize_axes(
        feature_axis, x.ndim, caller=caller, name="feature_axis"
    )
    reduced = axes.complement(features, x.ndim)
    stats = check_features(stats, x, features, caller=caller)
    operands = check_operands(
        x,
        features,
        reduced,
        scale,
        bias,
        weights=weights,
        eps=eps,
        add=add,
        caller=caller,
    )
    output = Output(dtype, options.check_activation(activation, x, caller=caller))
    over = Reduction(reduced, axis_name, groups)

    def train(operands: Operands, stats: NormStats) -> tuple[jax.Array, NormStats]:
        check_precision(stats, caller=caller)
        axes.check_reduced(operands.x, reduced, axis_name, caller=caller)
        y, moments = normalize_by_moments(operands, over, output)
        batch = collapse(moments, reduced, stats.mean.dtype)
        return y, move(stats, batch, decay=decay, ddof=ddof)

    def evaluate(operands: Operands, stats: NormStats) -> tuple[jax.Array, NormStats]:
        mean, var = arguments.expand_statistics(
            stats.mean, stats.var, operands.x, features, caller=caller
        )
        return normalize_by_statistics(operands, mean, var, output), stats

    if isinstance(training, bool):
        return train(operands, stats) if training else evaluate(operands, stats)
    return sharding.cond(training, train, evaluate, operands, stats)
