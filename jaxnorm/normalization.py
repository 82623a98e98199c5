"""Normalize by moments, and the derivative rule of doing so.

    y = scale * (x - mean) / sqrt(var + eps) + bias

The rule is a `jax.custom_jvp`, so that every mode of differentiation works. Its tangent
is written as

    t_y = a * t_x + d * P + Q,    d = x - shift

with P and Q small (of the shape of the statistics), made from two sums over t_x and d.
It is linear in the tangents and transposes by itself into the backward pass: two
reductions, one collective, one elementwise pass. Under `jax.checkpoint` a linearization
keeps `x` itself, in its own dtype, and nothing else of its size. Half-precision
tangents are converted to float32 once: rounding each contribution would double the
error.

An activation, and what is added before it, are part of the rule: everything is then
multiplied by a slope that is computed anew from `x`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm import arguments, axes, sums
from jaxnorm.affine import (
    ACTIVATIONS,
    Operands,
    Output,
    affine,
    finish,
    line,
    plus,
    times,
    within,
)
from jaxnorm.axes import Axes
from jaxnorm.shifted import (
    Reduction,
    ShiftedMoments,
    deviations,
    measure,
    moment_tangents,
    nonzero,
    reciprocal,
    replace_unused,
    spread,
    spread_moments,
)


def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: ArrayLike = 1e-5,
    feature_axis: Axes = -1,
    dtype: Any = None,
) -> jax.Array:
    r"""Normalize `x` by a given mean and variance.

    .. math::
      y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Args:
      x: array of a floating-point or complex dtype, any rank.
      mean: mean; the sizes of `feature_axis`, or any shape of the rank of `x` that
        broadcasts to it.
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
      TypeError: if `x` is neither floating-point nor complex.
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
    dtype = arguments.check_dtype(dtype, x, caller=caller)
    eps = arguments.check_eps(eps, caller=caller)
    features = axes.canonicalize_axes(
        feature_axis, x.ndim, caller=caller, name="feature_axis"
    )
    expand = partial(arguments.expand_parameter, x=x, axes=features, caller=caller)
    scale, bias = expand(scale, name="scale"), expand(bias, name="bias")
    statistics = expand(mean, name="mean"), expand(var, name="var")
    operands = Operands(x, None, scale, bias, eps)
    return normalize_by_statistics(operands, *statistics, Output(dtype))


# Outside of jit each of the two is compiled once for its shapes: a choice of platform
# (see `sums`) would be compiled anew at every call. In a traced program it leaves no
# trace. Parameters of fewer digits are widened here, before anything is differentiated.
@partial(jax.jit, static_argnums=(3,), inline=True)
def normalize_by_statistics(
    operands: Operands, mean: jax.Array, var: jax.Array, output: Output
) -> jax.Array:
    """Normalize by a mean and a variance that have the rank of `x`; without weights."""
    mean, var = (arguments.widen(v, operands.x) for v in (mean, var))
    return _by_statistics(_widened(operands), mean, var, output)


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def normalize_by_moments(
    operands: Operands, over: Reduction, output: Output
) -> tuple[jax.Array, ShiftedMoments]:
    """Normalize `x` by its own moments. Returns the output and the moments.

    An empty set (all weights 0) gives 0, and so zero gradients.
    """
    return _by_moments(_widened(operands), over, output)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _by_statistics(
    operands: Operands, mean: jax.Array, var: jax.Array, output: Output
) -> jax.Array:
    x, _, scale, bias, eps, add = operands
    d = x.astype(arguments.statistics_dtype(x.dtype)) - mean
    inverse = lax.rsqrt(var + eps)
    y = affine(d, inverse, scale, bias, half=x.dtype.itemsize < 4)
    return finish(y, add, output)


@partial(_by_statistics.defjvp, symbolic_zeros=True)
def _by_statistics_jvp(
    output: Output, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    def differentiate(
        operands: Operands, mean: jax.Array, var: jax.Array, tangents: tuple[Any, ...]
    ) -> jax.Array:
        t_operands, t_mean, t_var = tangents
        dtype = jnp.promote_types(
            arguments.statistics_dtype(operands.x.dtype), mean.dtype
        )
        shift = mean.astype(dtype)
        moments = ShiftedMoments(jnp.ones_like(var), shift, jnp.zeros_like(shift), var)
        return _tangent(
            output.activation,
            operands,
            moments,
            t_operands,
            t_mean,
            t_var,
            has_remainder=False,
        )

    operands, mean, var = primals
    y = _by_statistics(operands, mean, var, output)
    differentiate = jax.checkpoint(differentiate, prevent_cse=False)
    t_y = differentiate(operands, mean, var, nonzero(tangents))
    return y, t_y.astype(output.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _by_moments(
    operands: Operands, over: Reduction, output: Output
) -> tuple[jax.Array, ShiftedMoments]:
    x, weights, scale, bias, eps, add = operands
    pooled = measure(x, weights, over, apart=output.apart)
    moments = spread_moments(pooled, over, x)
    d = deviations(x, moments.shift, moments.mean, weights)
    inverse = lax.rsqrt(moments.var + eps)
    half = x.dtype.itemsize < 4
    if x.ndim - 1 not in over.axis and within(inverse, scale, bias):
        _, offset = line(moments, inverse, scale, bias)
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
    primals: tuple[Operands],
    tangents: tuple[Operands],
) -> Any:
    y, moments = _by_moments(*primals, over, output._replace(apart=True))
    differentiate = jax.checkpoint(
        partial(_differentiate, over, output.activation), prevent_cse=False
    )
    t_y, t_moments = differentiate(*primals, moments, *nonzero(tangents))
    return (y, moments), (t_y.astype(output.dtype), t_moments)


def _differentiate(
    over: Reduction,
    activation: str | None,
    operands: Operands,
    pooled: ShiftedMoments,
    tangents: Operands,
) -> tuple[jax.Array, ShiftedMoments]:
    """Return the tangents of the output and of the moments. A tangent of None is 0."""
    x, weights = operands.x, operands.weights
    moments = spread_moments(pooled, over, x)
    t_x = tangents.x
    if t_x is not None:
        t_x = t_x.astype(moments.shift.dtype)
    t_pooled = moment_tangents(x, weights, t_x, tangents.weights, pooled, over)
    t_moments = spread(t_pooled, over, x)
    if weights is not None:
        t_x = _or(t_x, jnp.zeros_like(x, moments.shift.dtype))
        t_x = replace_unused(t_x, t_moments.mean, x, weights)

    t_var = (t_moments.m2 - moments.var * t_moments.count) * reciprocal(moments.count)
    t_y = _tangent(
        activation,
        operands,
        moments,
        tangents._replace(x=t_x),
        t_moments.mean if over.centered else None,
        t_var,
        has_remainder=over.centered,
    )
    return t_y, t_pooled


def _tangent(
    activation: str | None,
    operands: Operands,
    moments: ShiftedMoments,
    tangents: Operands,
    t_mean: jax.Array | None,
    t_var: jax.Array | None,
    *,
    has_remainder: bool,
) -> jax.Array:
    """Return the tangent of the output, given those of mean and variance.

    Without a remainder the shift is the mean, and `moments.mean` is 0.
    """
    x, weights, scale, bias, eps, add = operands
    inverse = lax.rsqrt(moments.var + eps)
    dtype = moments.shift.dtype
    zero = jnp.zeros((1,) * x.ndim, dtype)
    t_scale, t_bias = _or(tangents.scale, zero), tangents.bias
    # y = a * (d - mean) + bias, so t_y = a * t_x + p * (d - mean) + q.
    a, q = inverse, None if t_mean is None else -inverse * t_mean
    p = -0.5 * inverse**3 * (_or(t_var, zero) + _or(tangents.eps, zero))
    folded = within(inverse, scale, bias)
    if folded:
        a, p, q = (times(value, scale) for value in (a, p, q))
        p, q = p + inverse * t_scale, _add(q, t_bias)
    if has_remainder:
        q = _add(q, -p * moments.mean)

    # All of it times the slope of the activation, which is computed anew where it is
    # used: nothing but `x`, and `add`, has to be kept.
    coefficients: tuple[jax.Array | None, ...] = (None, None)
    if activation is not None:
        coefficients = line(moments, inverse, scale, bias)
    gain = None if folded else scale
    place = moments.shift, moments.mean
    common: tuple[Any, ...] = (x, *place, weights, add, *coefficients)
    at = partial(_deviations_and_slope, activation)
    _, slope = at(*common)
    t_y = jnp.zeros_like(x, dtype)
    if tangents.x is not None:
        t_x = tangents.x.astype(dtype)
        t_y += sums.hold(a) * times(times(t_x, gain), slope)
    t_affine = tangents.scale, tangents.bias
    if _any(t_mean, t_var, tangents.eps) or (folded and _any(*t_affine)):
        t_y += sums.combine(partial(_tilt, at), (*common, gain), p, q)
    if not folded and _any(*t_affine):
        standard = (*common, inverse)
        t_y += sums.combine(partial(_stretch, at), standard, t_scale, t_bias)
    if weights is not None:
        t_y = jnp.where(moments.count > 0, t_y, 0)
    t_add = tangents.add
    return plus(t_y, None if t_add is None else times(t_add.astype(dtype), slope))


def _deviations_and_slope(
    activation: str | None,
    x: jax.Array,
    shift: jax.Array,
    mean: jax.Array,
    weights: jax.Array | None,
    add: jax.Array | None,
    gain: jax.Array | None,
    offset: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Return d, and the derivative of the activation at d * gain + offset + add."""
    d = deviations(x, shift, mean, weights)
    if activation is None or gain is None or offset is None:
        return d, None
    y = plus(d * gain + offset, add)
    return d, jax.jvp(ACTIVATIONS[activation], (y,), (jnp.ones_like(y),))[1]


def _tilt(at: Any, *operands: Any) -> tuple[jax.Array, jax.Array | None]:
    *common, gain = operands
    d, slope = at(*common)
    return d, slope if gain is None else times(gain, slope)


def _stretch(at: Any, *operands: Any) -> tuple[jax.Array, jax.Array | None]:
    *common, inverse = operands
    _, _, mean, *_ = common
    d, slope = at(*common)
    return (d - mean) * inverse, slope


def _widened(operands: Operands) -> Operands:
    x, _, scale, bias, *_ = operands
    scale, bias = (arguments.widen(v, x) for v in (scale, bias))
    return operands._replace(scale=scale, bias=bias)


def _any(*values: jax.Array | None) -> bool:
    return any(value is not None for value in values)


def _add(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    return a if b is None else b if a is None else a + b


def _or(value: jax.Array | None, default: jax.Array) -> jax.Array:
    return default if value is None else value
