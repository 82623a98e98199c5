"""The moments of an array, and their derivative.

Numerics, in one place:

- Everything is computed in at least float32; complex input has a real m2.
- Deviations are taken from a *shift* near the mean: d = x - shift is exact where it
  matters, and mean = shift + E[d], m2 = sum(d^2) - count * E[d]^2 keep the digits that
  E[x^2] - E[x]^2 loses (Chan, Golub and LeVeque 1983).
- Shift and E[d] are returned apart (see `shifted`).
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxnorm import devices, dtypes, sampling, sums
from jaxnorm.arithmetic import inner, reciprocal, settle, show_overflow, square
from jaxnorm.parts import measure_in_parts
from jaxnorm.reduction import Reduction, per_channel, sum_groups
from jaxnorm.shifted import ShiftedMoments, pool
from jaxnorm.weighting import (
    deviations,
    total_weight,
    weigh,
    weigh_linearly,
    weighs_the_same_everywhere,
)


def measure(
    x: jax.Array,
    weights: jax.Array | None,
    over: Reduction,
    *,
    moments_used: bool = True,
) -> ShiftedMoments:
    """Compute and pool moments; without a derivative rule of its own.

    `moments_used=False` says that nothing but one normalized array depends on them.
    They are then computed together with it where that is faster. In bfloat16 the
    remainder of the mean is then dropped: it is less than a thousandth of what the
    input is rounded by.
    """
    pack_last_axis = moments_used or not _faster_together(x, over)
    measure_set = partial(_measure_set, pack_last_axis=pack_last_axis)
    here = over._replace(axis_name=None, axis_index_groups=None)
    moments = measure_in_parts(measure_set, x, weights, here)
    if over.axis_name is not None:
        alike = weighs_the_same_everywhere(x, weights)
        if alike:  # counted anew, as vmap takes what `linear` returns for different
            moments = moments._replace(count=_count(x, None, over))
        moments = pool(moments, over.axis_name, over.axis_index_groups, alike=alike)
        moments = moments._replace(shift=sums.hold(moments.shift))
    return moments


def _measure_set(
    x: jax.Array, weights: jax.Array | None, over: Reduction, *, pack_last_axis: bool
) -> ShiftedMoments:
    """Measure from one shift."""
    count = _count(x, weights, over)
    shift, is_mean = _near_mean(x, weights, count, over, pack_last_axis)
    # All users must see the shift rounded alike, which `settle` sees to. In half
    # precision `hold` is enough for that, except where it does nothing (a last axis of
    # size 1), or where weights make the shift a product.
    if not dtypes.is_half(x) or weights is not None or x.shape[-1:] == (1,):
        shift = settle(shift)
    shift = sums.hold(shift)
    first, second = _sums_of_deviations(x, weights, shift, over, pack_last_axis)
    if not over.centered or (
        is_mean and x.dtype == jnp.bfloat16 and not pack_last_axis
    ):
        mean, m2 = jnp.zeros_like(shift), second
    else:
        mean = first / jnp.where(count == 0, 1, count)
        # From a sample's mean up to 4/5 of the sum may cancel, so the form is the one
        # that rounds least. From the mean itself little does: the other is faster.
        excess = count * square(mean) if is_mean else inner(first, mean)
        m2 = jnp.maximum(second - excess, 0)
    return ShiftedMoments(count, shift, mean, m2)


def _count(x: jax.Array, weights: jax.Array | None, over: Reduction) -> jax.Array:
    return sum_groups(total_weight(x, weights, over.axis), over, x)


def _near_mean(
    x: jax.Array,
    weights: jax.Array | None,
    count: jax.Array,
    over: Reduction,
    pack_last_axis: bool,
) -> tuple[jax.Array, bool]:
    """Return a value near the mean of what has weight, and whether it is the mean.

    One for all channels of a group. Moments that are not centered are about 0.
    """
    wide = x.astype(dtypes.statistics_dtype(x.dtype))
    if not over.centered:  # the sum is dropped: only its type is looked at
        return jnp.zeros_like(_sum(wide, over.axis)), True
    if weights is not None:
        total = _sum(weigh(wide, weights), over.axis)
        return sum_groups(total, over, x) * reciprocal(count), True
    near, is_mean = sampling.approximate_mean(
        x, over.axis, pack_last_axis=pack_last_axis, whole_axis=over.whole_axis
    )
    if over.channel_groups is None:
        return near, is_mean
    axis, groups = over.channel_groups
    return sum_groups(near, over, x) * (groups / max(x.shape[axis], 1)), is_mean


def _sums_of_deviations(
    x: jax.Array,
    weights: jax.Array | None,
    shift: jax.Array,
    over: Reduction,
    pack_last_axis: bool,
) -> tuple[jax.Array, jax.Array]:
    """Return the sums of d = x - shift (0 if not centered) and of d^2, weighted."""

    def terms(x: jax.Array, shift: jax.Array, weights: Any) -> Any:
        d = x.astype(shift.dtype) - shift
        squares = weigh(square(d), weights)
        return (weigh(d, weights), squares) if over.centered else (squares,)

    operands = x, _hold_repeated(per_channel(shift, over, x), over), weights
    # A single sum is as fast plain, except in half precision, where XLA would first
    # write a copy of x in float32.
    pack = pack_last_axis and (over.centered or dtypes.is_half(x))
    each = sums.sum_terms(
        terms, operands, over.axis, pack_last_axis=pack, whole_axis=over.whole_axis
    )
    *first, second = sum_groups(each, over, x)
    return first[0] if first else jnp.zeros_like(shift), second


def moments_per_channel(
    pooled: ShiftedMoments, over: Reduction, x: jax.Array
) -> ShiftedMoments:
    """Give every channel of `x` the moments of its group; the shift computed once.

    A sum of squares that overflows becomes NaN, but not that of rows in half precision:
    m2 would be used twice, and XLA:CPU would no longer fuse moments and output into one
    kernel.
    """
    if not dtypes.is_half(x) or x.ndim - 1 not in over.axis:
        pooled = pooled._replace(m2=show_overflow(pooled.m2))
    moments = per_channel(pooled, over, x)
    return moments._replace(shift=_hold_repeated(moments.shift, over))


def moment_tangents(
    x: jax.Array,
    weights: jax.Array | None,
    t_x: jax.Array | None,
    t_weights: jax.Array | None,
    pooled: ShiftedMoments,
    over: Reduction,
) -> ShiftedMoments:
    """Differentiate the moments.

        t_mean = sum(weights * t_x + t_weights * c) / count
        t_m2   = sum(2 * weights * c * t_x + t_weights * c^2)
        c      = x - mean

    0 for an empty set. Linear in the tangents, with one collective; so its transpose
    has one as well. A tangent of None is zero.
    """
    moments = moments_per_channel(pooled, over, x)
    t_sum, t_m2 = jnp.zeros_like(moments.mean), jnp.zeros_like(moments.m2)

    def terms(t_x: jax.Array, x: jax.Array, shift: jax.Array, weights: Any) -> Any:
        d = deviations(x, shift, 0, weights)
        inner_term = weigh_linearly(inner(d, t_x), weights, x)
        if not over.centered:
            return (inner_term,)
        return inner_term, weigh_linearly(t_x, weights, x)

    if t_x is not None:
        operands = x, moments.shift, weights
        each = sums.sum_linear_terms(terms, t_x, operands, over.axis)
        t_inner, *t_d = map(sums.hold_cotangent, each)
        t_m2 += 2 * t_inner
        if over.centered:
            t_sum += t_d[0]
            t_m2 -= 2 * inner(moments.mean, t_d[0])
    if t_weights is not None:
        c = deviations(x, moments.shift, moments.mean, weights) - moments.mean
        t_sum += _sum(t_weights * c, over.axis)
        t_m2 += _sum(t_weights * square(c), over.axis)
    if weights is not None:  # an empty set has no mean to measure from
        t_m2 = jnp.where(moments.count > 0, t_m2, 0)
    local = {"m2": t_m2}
    if over.centered:
        local["mean"] = t_sum
    if t_weights is not None:
        local["count"] = total_weight(x, t_weights, over.axis)
    local = sum_groups(local, over, x)
    total = devices.sum_over_devices(local, over.axis_name, over.axis_index_groups)
    return ShiftedMoments(
        total.get("count", jnp.zeros_like(pooled.count)),
        jnp.zeros_like(pooled.shift),
        total.get("mean", jnp.zeros_like(pooled.mean)) * reciprocal(pooled.count),
        total["m2"],
    )


@partial(jax.jit, static_argnums=(2,), inline=True)  # see normalize_by_statistics
def measure_alone(
    x: jax.Array, weights: jax.Array | None, over: Reduction
) -> ShiftedMoments:
    """Compute and pool moments, with a derivative rule."""
    return _moments(x, weights, over)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _moments(
    x: jax.Array, weights: jax.Array | None, over: Reduction
) -> ShiftedMoments:
    return measure(x, weights, over)


@partial(_moments.defjvp, symbolic_zeros=True)
def _moments_jvp(over: Reduction, primals: Any, tangents: Any) -> Any:
    moments = _moments(*primals, over)

    # Checkpointed, so that x itself is what a linearization keeps.
    @partial(jax.checkpoint, prevent_cse=False)
    def differentiate(primals: Any, moments: Any, tangents: Any) -> ShiftedMoments:
        (x, weights), (t_x, t_weights) = primals, tangents
        if t_x is not None:
            t_x = t_x.astype(moments.shift.dtype)
        return moment_tangents(x, weights, t_x, t_weights, moments, over)

    tangents = drop_symbolic_zeros(tangents)
    return moments, differentiate(primals, moments, tangents)


def drop_symbolic_zeros(tangents: Any) -> Any:
    """Replace the symbolic zeros that a custom_jvp rule receives by None."""

    def drop(tangent: Any) -> Any:
        symbolic = (
            isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0
        )
        return None if symbolic else tangent

    return jax.tree.map(drop, tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))


def _hold_repeated(shift: jax.Array, over: Reduction) -> jax.Array:
    """Hold what channels got of their group; a shift of their own is held already."""
    return shift if over.channel_groups is None else sums.hold(shift)


def _faster_together(x: jax.Array, over: Reduction) -> bool:
    """Whether XLA:CPU is faster with the moments of rows and the output in one kernel.

    It makes one, or nearly so, if the sums over the last axis are left plain. In
    float32 packed sums are faster than the three that a centered norm takes. In half
    precision they are slower, except in large arrays of fewer than 4096 rows, of which
    XLA makes several kernels anyway.
    """
    if not all(isinstance(n, int) for n in x.shape):  # symbolic, as in jax.export
        return True
    if not dtypes.is_half(x):
        return not over.centered
    rows = math.prod(n for a, n in enumerate(x.shape) if a not in over.axis)
    return rows >= 4096 or x.size < 2**17


def _sum(x: jax.Array, axis: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axis, keepdims=True)
