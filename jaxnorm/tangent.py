"""The tangent of what is normalized, given those of mean and variance.

    t_y = a * t_x + d * P + Q,    d = x - shift

with P and Q small, of the shape of the statistics. Their tangents are made from two
sums over t_x and d (see `moment_tangents`). Half-precision tangents are converted to
float32 once: rounding each contribution would double the error.

An activation, and what is added before it, are part of it: everything is then
multiplied by a slope that is computed anew from `x`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import sums
from jaxnorm.affine import ACTIVATIONS, Operands, line, plus, times, within
from jaxnorm.measuring import deviations, replace_unused
from jaxnorm.shifted import ShiftedMoments


def tangent(
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
    y = replace_unused(y, 0, y, weights)  # what is added may be hidden there as well
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


def _any(*values: jax.Array | None) -> bool:
    return any(value is not None for value in values)


def _add(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    return a if b is None else b if a is None else a + b


def _or(value: jax.Array | None, default: jax.Array) -> jax.Array:
    return default if value is None else value
