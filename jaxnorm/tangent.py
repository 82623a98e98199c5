"""The tangent of what is normalized, given those of mean and variance.

With a = 1 / sqrt(var + eps), d = x - shift and m the mean of d:

    y   = scale * a * (d - m) + bias
    t_y = scale * (a * t_x + p * (d - m) + q) + t_scale * a * (d - m) + t_bias
    p   = -a^3 * (t_var + t_eps) / 2
    q   = -a * t_mean

A scale and a bias that are constant over the elements that are normalized together are
folded into a, p and q, which have the small shape of the statistics:

    t_y = A * t_x + P * d + Q
    A   = scale * a
    P   = scale * p + a * t_scale
    Q   = scale * q + t_bias - P * m

The tangents of mean and variance are made from two sums over t_x and d (see
`moment_tangents`). Half-precision tangents are converted to float32 once: rounding each
contribution would double the error.

With an activation, everything is multiplied by its slope. The slope is recomputed from
`x`: in every kernel that needs it, or just once where `add` has a float32 tangent.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import dtypes, sharding, sums
from jaxnorm.affine import constant_within_sets, gain_and_offset, plus, times
from jaxnorm.operands import Operands
from jaxnorm.options import ACTIVATIONS, Activation
from jaxnorm.shifted import ShiftedMoments
from jaxnorm.weighting import deviations, replace_hidden


class PreActivation(NamedTuple):
    """Where an activation is differentiated: at (x - shift) * gain + offset + add.

    `gain` and `offset` are None without an activation.
    """

    x: jax.Array
    shift: jax.Array
    mean: jax.Array
    weights: jax.Array | None
    add: jax.Array | None
    gain: jax.Array | None
    offset: jax.Array | None


def output_tangent(
    activation: Activation | None,
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
    x, weights, scale, bias, eps, _ = operands
    dtype = moments.shift.dtype
    inverse = lax.rsqrt(moments.var + eps)
    folded = constant_within_sets(inverse, scale, bias)
    a = times(inverse, scale) if folded else inverse
    p, q = _coefficients(inverse, t_mean, t_var, tangents.eps)
    if folded:
        p, q = _fold(p, q, inverse, scale, tangents)
    if has_remainder:
        q = _add(q, -p * moments.mean)

    place = _pre_activation(activation, operands, moments, inverse)
    outer_slope = None
    if tangents.add is not None and not dtypes.is_half(tangents.add):
        # Backward, the cotangent of `add` is the output's times the slope, and is
        # written to memory, where the sums can read it. (In half precision it would be
        # written in float32.)
        _, outer_slope = _deviations_and_slope(activation, place)
        activation = None
    outer_scale = None if folded else scale
    _, slope = _deviations_and_slope(activation, place)
    t_y = jnp.zeros_like(x, dtype)
    if tangents.x is not None:
        t_x = tangents.x.astype(dtype)
        t_y += sums.hold(a) * times(times(t_x, outer_scale), slope)
    t_affine = tangents.scale, tangents.bias
    if _any(t_mean, t_var, tangents.eps) or (folded and _any(*t_affine)):
        factors = partial(_factors_of_p_and_q, activation)
        t_y += sums.combine(factors, (*place, outer_scale), p, q)
    if not folded and _any(*t_affine):
        t_scale = _or_zero(tangents.scale, inverse)
        factors = partial(_factors_of_scale_and_bias, activation)
        t_y += sums.combine(factors, (*place, inverse), t_scale, tangents.bias)
    if weights is not None:
        t_y = jnp.where(moments.count > 0, t_y, 0)
    t_add = tangents.add
    t_y = plus(t_y, None if t_add is None else times(t_add.astype(dtype), slope))
    return times(t_y, outer_slope)


def _pre_activation(
    activation: Activation | None,
    operands: Operands,
    moments: ShiftedMoments,
    inverse: jax.Array,
) -> PreActivation:
    x, weights, scale, bias, _, add = operands
    gain, offset = None, None
    if activation is not None:
        gain, offset = gain_and_offset(moments, inverse, scale, bias)
    return PreActivation(x, moments.shift, moments.mean, weights, add, gain, offset)


def _coefficients(
    inverse: jax.Array,
    t_mean: jax.Array | None,
    t_var: jax.Array | None,
    t_eps: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Return p and q, without scale and bias; a q of None is 0."""
    t_square = _or_zero(t_var, inverse) + _or_zero(t_eps, inverse)
    # In this order, so that nothing overflows where all is small.
    p = -0.5 * inverse * (inverse * (inverse * t_square))
    return p, None if t_mean is None else -inverse * t_mean


def _fold(
    p: jax.Array,
    q: jax.Array | None,
    inverse: jax.Array,
    scale: jax.Array | None,
    tangents: Operands,
) -> tuple[jax.Array, jax.Array | None]:
    """Return P and Q, except for the mean; scale and bias are constant within sets."""
    folded = times(p, scale) + inverse * _or_zero(tangents.scale, inverse)
    return folded, _add(times(q, scale), tangents.bias)


def _deviations_and_slope(
    activation: Activation | None, place: PreActivation
) -> tuple[jax.Array, jax.Array | None]:
    """Return d, and the derivative of the activation, where there is one."""
    x, shift, mean, weights, add, gain, offset = place
    d = deviations(x, shift, mean, weights)
    if activation is None or gain is None or offset is None:
        return d, None
    y = plus(d * gain + offset, add)
    y = replace_hidden(y, 0, y, weights)  # `add` may be hidden as well
    one = sharding.shard_like(jnp.ones_like(y), y)
    return d, jax.jvp(ACTIVATIONS[activation], (y,), (one,))[1]


def _factors_of_p_and_q(
    activation: Activation | None, *operands: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Return what P, and what it and Q together, are multiplied by."""
    *place, outer_scale = operands
    d, slope = _deviations_and_slope(activation, PreActivation(*place))
    return d, slope if outer_scale is None else times(outer_scale, slope)


def _factors_of_scale_and_bias(
    activation: Activation | None, *operands: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Return what t_scale, and what it and t_bias together, are multiplied by."""
    *fields, inverse = operands
    place = PreActivation(*fields)
    d, slope = _deviations_and_slope(activation, place)
    return (d - place.mean) * inverse, slope


def _any(*values: jax.Array | None) -> bool:
    return any(value is not None for value in values)


def _add(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    return a if b is None else b if a is None else a + b


def _or_zero(value: jax.Array | None, like: jax.Array) -> jax.Array:
    return jnp.zeros((1,) * like.ndim, like.dtype) if value is None else value
