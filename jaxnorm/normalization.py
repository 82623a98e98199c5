"""Normalize by moments, and the derivative rule of doing so.

    y = scale * (x - mean) / sqrt(var + eps) + bias

The rule is a `jax.custom_jvp`, so that every mode of differentiation works. Its tangent
(see `tangent`) is linear, and is transposed into the backward pass: two reductions, one
collective, one elementwise pass. Under `jax.checkpoint` a linearization keeps `x`
itself, in its own dtype, and nothing else of its size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, axes, dtypes, options, sharding
from jaxnorm.affine import affine, constant_within_sets, finish, gain_and_offset
from jaxnorm.arithmetic import reciprocal
from jaxnorm.axes import Axes
from jaxnorm.measuring import (
    drop_symbolic_zeros,
    measure,
    moment_tangents,
    moments_per_channel,
)
from jaxnorm.operands import Operands, Output
from jaxnorm.options import Activation
from jaxnorm.reduction import Reduction, per_channel
from jaxnorm.shifted import ShiftedMoments
from jaxnorm.tangent import output_tangent
from jaxnorm.weighting import deviations, replace_hidden


def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: ArrayLike = 1e-5,
    feature_axis: Axes = -1,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalize `x` by a given mean and variance.

        y = scale * (x - mean) / sqrt(var + eps) + bias

    Args:
      x: array of a floating-point or complex dtype, any rank.
      mean: mean; a scalar, the sizes of `feature_axis`, or any shape of the rank of `x`
        that broadcasts to it.
      var: variance, in the same shapes.
      scale: gamma, in the same shapes; None is 1.
      bias: beta, in the same shapes; None is 0.
      eps: added to the variance; positive.
      feature_axis: axis, or axes, of `x` that `mean`, `var`, `scale` and `bias` belong
        to.
      dtype: dtype of the output; None is that of `x`. Computed in at least float32.

    Returns:
      Array of the shape of `x`.

    Raises:
      TypeError: if `x` is neither floating-point nor complex, `mean` or `var` is None,
        a parameter is complex though `x` is real, `dtype` cannot hold the output, or
        `eps` is not a number.
      ValueError: if a shape does not fit `x`, or `eps` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> mean, var = jnp.array([2.0, 20.0]), jnp.array([1.0, 100.0])
      >>> print(jn.normalize(x, mean, var, eps=1e-9))
      [[-1. -1.]
       [ 1.  1.]]

    Reference:
      Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167.
    """
    caller = "normalize"
    x = arguments.check_input(x, caller=caller)
    dtype = options.check_dtype(dtype, x, caller=caller)
    eps = options.check_eps(eps, caller=caller)
    features = axes.canonicalize_axes(
        feature_axis, x.ndim, caller=caller, name="feature_axis"
    )
    expand = partial(arguments.expand_parameter, x=x, axes=features, caller=caller)
    scale, bias = expand(scale, name="scale"), expand(bias, name="bias")
    statistics = arguments.expand_statistics(mean, var, x, features, caller=caller)
    operands = Operands(x, None, scale, bias, eps)
    return normalize_by_statistics(operands, *statistics, Output(dtype))


# With jit, an eager call is compiled once per set of shapes; without, the choice of
# platform (see `linear`) would be compiled again at every call. `inline=True` leaves
# nothing of it in traced programs. Parameters of lower precision are widened here,
# before anything is differentiated.
@partial(jax.jit, static_argnums=(3,), inline=True)
def normalize_by_statistics(
    operands: Operands, mean: jax.Array, var: jax.Array, output: Output
) -> jax.Array:
    """Normalize by a mean and a variance that have the rank of `x`.

    An element of weight 0 that is not finite is treated as equal to the mean.
    """
    mean, var = (dtypes.widen(v, operands.x) for v in (mean, var))
    return _by_statistics(_widened(operands), mean, var, output)


@partial(jax.jit, static_argnums=(1, 2), static_argnames="moments_used", inline=True)
def normalize_by_moments(
    operands: Operands, over: Reduction, output: Output, *, moments_used: bool = True
) -> tuple[jax.Array, ShiftedMoments]:
    """Normalize `x` by its own moments. Returns the output and the moments.

    An empty set (all weights 0) gives 0, and so zero gradients. `moments_used=False`
    says that the moments are dropped (see `measure`).
    """
    return _by_moments(_widened(operands), over, output, moments_used)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _by_statistics(
    operands: Operands, mean: jax.Array, var: jax.Array, output: Output
) -> jax.Array:
    x, weights, scale, bias, eps, add = operands
    d = x.astype(dtypes.statistics_dtype(x.dtype)) - mean
    d = replace_hidden(d, 0, x, weights)
    inverse = lax.rsqrt(var + eps)
    y = affine(d, inverse, scale, bias, half=dtypes.is_half(x))
    return finish(y, add, output)


@partial(_by_statistics.defjvp, symbolic_zeros=True)
def _by_statistics_jvp(
    output: Output, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    y = _by_statistics(*primals, output)
    differentiate = jax.checkpoint(
        partial(_by_statistics_tangent, output.activation), prevent_cse=False
    )
    t_y = differentiate(*primals, *drop_symbolic_zeros(tangents))
    return y, sharding.as_spread(t_y.astype(output.dtype), y)


def _by_statistics_tangent(
    activation: Activation | None,
    operands: Operands,
    mean: jax.Array,
    var: jax.Array,
    tangents: Operands,
    t_mean: jax.Array | None,
    t_var: jax.Array | None,
) -> jax.Array:
    """Return the tangent of the output. A tangent of None is 0."""
    x, weights = operands.x, operands.weights
    dtype = jnp.promote_types(dtypes.statistics_dtype(x.dtype), mean.dtype)
    shift = mean.astype(dtype)
    moments = ShiftedMoments(jnp.ones_like(var), shift, jnp.zeros_like(shift), var)
    if tangents.x is not None:
        t_x = tangents.x.astype(dtype)
        t_x = replace_hidden(t_x, 0 if t_mean is None else t_mean, x, weights)
        tangents = tangents._replace(x=t_x)
    return output_tangent(
        activation, operands, moments, tangents, t_mean, t_var, has_remainder=False
    )


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _by_moments(
    operands: Operands, over: Reduction, output: Output, moments_used: bool
) -> tuple[jax.Array, ShiftedMoments]:
    x, weights, scale, bias, eps, add = operands
    pooled = measure(x, weights, over, moments_used=moments_used)
    moments = moments_per_channel(pooled, over, x)
    d = deviations(x, moments.shift, moments.mean, weights)
    inverse = lax.rsqrt(moments.var + eps)
    half = dtypes.is_half(x)
    if x.ndim - 1 not in over.axis and constant_within_sets(inverse, scale, bias):
        # (d - mean) * a + bias as d * a + offset: one operation less for each element.
        _, offset = gain_and_offset(moments, inverse, scale, bias)
        y = affine(d, inverse, scale, offset, half=half)
    else:
        y = affine(d - moments.mean, inverse, scale, bias, half=half)
    if weights is not None:
        y = jnp.where(moments.count > 0, y, 0)
    return finish(y, add, output), pooled


@partial(_by_moments.defjvp, symbolic_zeros=True)
def _by_moments_jvp(
    over: Reduction,
    output: Output,
    moments_used: bool,
    primals: tuple[Operands],
    tangents: tuple[Operands],
) -> Any:
    y, moments = _by_moments(*primals, over, output, True)  # the tangent needs them
    differentiate = jax.checkpoint(
        partial(_by_moments_tangent, over, output.activation), prevent_cse=False
    )
    t_y, t_moments = differentiate(*primals, moments, *drop_symbolic_zeros(tangents))
    t_y = sharding.as_spread(t_y.astype(output.dtype), y)
    return (y, moments), (t_y, t_moments)


def _by_moments_tangent(
    over: Reduction,
    activation: Activation | None,
    operands: Operands,
    pooled: ShiftedMoments,
    tangents: Operands,
) -> tuple[jax.Array, ShiftedMoments]:
    """Return the tangents of the output and of the moments. A tangent of None is 0."""
    x, weights = operands.x, operands.weights
    moments = moments_per_channel(pooled, over, x)
    t_x = tangents.x
    if t_x is not None:
        t_x = t_x.astype(moments.shift.dtype)
    t_mean, t_var = None, None
    if t_x is None and tangents.weights is None:  # then the moments do not move
        t_pooled = jax.tree.map(jnp.zeros_like, pooled)
    else:
        t_pooled = moment_tangents(x, weights, t_x, tangents.weights, pooled, over)
        t_count, _, t_mean, t_m2 = per_channel(t_pooled, over, x)
        t_var = (t_m2 - moments.var * t_count) * reciprocal(moments.count)
        if weights is not None:
            if t_x is None:
                t_x = jnp.zeros_like(x, moments.shift.dtype)
            t_x = replace_hidden(t_x, t_mean, x, weights)
    t_y = output_tangent(
        activation,
        operands,
        moments,
        tangents._replace(x=t_x),
        t_mean if over.centered else None,
        t_var,
        has_remainder=over.centered,
    )
    return t_y, t_pooled


def _widened(operands: Operands) -> Operands:
    scale = dtypes.widen(operands.scale, operands.x)
    bias = dtypes.widen(operands.bias, operands.x)
    return operands._replace(scale=scale, bias=bias)
