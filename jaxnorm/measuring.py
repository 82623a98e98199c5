"""The moments of an array: measured, shared by the channels of a group, differentiated.

Numerics, in one place:

- Everything is computed in at least float32; complex input has a real m2.
- Deviations are taken from a *shift* near the mean: d = x - shift is exact where it
  matters, and mean = shift + E[d], m2 = sum(d^2) - count * E[d]^2 keep the digits that
  E[x^2] - E[x]^2 loses (Chan, Golub and LeVeque 1983).
- What is returned holds shift and E[d] apart (see `shifted`).
"""

import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxnorm import arguments, devices, sharding, sums
from jaxnorm.axes import AxisName
from jaxnorm.devices import Groups
from jaxnorm.shifted import (
    ShiftedMoments,
    inner,
    pool,
    reciprocal,
    settle,
    show_overflow,
    square,
)

Tree = TypeVar("Tree")


class Reduction(NamedTuple):
    """What is reduced: axes of the array, groups of channels, a device axis. Hashable.

    `channel_groups` is (axis, G): along that axis, which is not among `axis`, the
    moments of C / G neighbouring channels are pooled, and G are left.
    `centered=False` takes moments about zero (root mean square) instead of the mean.
    """

    axis: tuple[int, ...]
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    centered: bool = True
    channel_groups: tuple[int, int] | None = None

    @property
    def all_axes(self) -> tuple[int, ...]:
        """The axes of the array whose elements are normalized together."""
        if self.channel_groups is None:
            return self.axis
        return tuple(sorted((*self.axis, self.channel_groups[0])))


def deviations(
    x: jax.Array, shift: jax.Array, mean: ArrayLike, weights: jax.Array | None
) -> jax.Array:
    """Return x - shift in the dtype of statistics; `mean` is that of x - shift."""
    return replace_unused(x.astype(shift.dtype) - shift, mean, x, weights)


def replace_unused(
    v: jax.Array, mean: ArrayLike, x: jax.Array, weights: jax.Array | None
) -> jax.Array:
    """Return `v`, and the mean where `x` is hidden (of weight 0) and not finite.

    Such an element is taken to lie at the mean, wherever that moves. Anything else
    would spoil outputs and gradients, through 0 * NaN.
    """
    if weights is None:
        return v
    return jnp.where(_positive(weights) | jnp.isfinite(x), v, mean)


def measure(
    x: jax.Array,
    weights: jax.Array | None,
    over: Reduction,
    *,
    moments_used: bool = True,
) -> ShiftedMoments:
    """Compute and pool moments; without a derivative rule of its own.

    `moments_used=False` says that nothing but one normalized array depends on them.
    They are then computed together with it where that is faster, and in bfloat16 the
    rounding of the mean, below a thousandth of what the input is rounded by, is not
    looked at.
    """
    pack = moments_used or not _faster_together(x, over)

    def terms(x: jax.Array, shift: jax.Array, weights: Any) -> Any:
        d = x.astype(shift.dtype) - shift
        squares = _weigh(square(d), weights)
        return (_weigh(d, weights), squares) if over.centered else (squares,)

    count = _sum_groups(_count(x, weights, over.axis), over, x)
    shift, is_mean = _shift(x, weights, count, over, pack)
    # Of half precision there are no digits to lose where a shift is held, as all are
    # but those of size 1 along the last axis.
    if not arguments.is_half(x) or weights is not None or x.shape[-1:] == (1,):
        shift = settle(shift)
    shift = sums.hold(shift)
    operands = x, _hold_repeated(per_channel(shift, over, x), over), weights
    # A single sum is as fast plain, except in half precision, where XLA would first
    # write a copy of x in float32.
    pack_last = pack and (over.centered or arguments.is_half(x))
    each = sums.sum_terms(terms, operands, over.axis, pack_last_axis=pack_last)
    *first, second = _sum_groups(each, over, x)
    if is_mean and (not over.centered or (x.dtype == jnp.bfloat16 and not pack)):
        mean, m2 = jnp.zeros_like(shift), second
    else:
        mean = first[0] / jnp.where(count == 0, 1, count)
        # Up to 4/5 of the sum may cancel, so the form is the one that rounds least;
        # where the shift is the mean little cancels, and the other is faster.
        excess = count * square(mean) if is_mean else inner(first[0], mean)
        m2 = jnp.maximum(second - excess, 0)
    moments = ShiftedMoments(count, shift, mean, m2)
    if over.axis_name is None:
        return moments
    pooled = pool(moments, over.axis_name, over.axis_index_groups)
    return pooled._replace(shift=sums.hold(pooled.shift))


def per_channel(tree: Tree, over: Reduction, x: jax.Array) -> Tree:
    """Give every channel of `x` the values of its group."""
    if over.channel_groups is None:
        return tree
    axis, groups = over.channel_groups

    def repeat(v: jax.Array) -> jax.Array:
        before, after = v.shape[:axis], v.shape[axis + 1 :]
        each = jnp.expand_dims(v, axis + 1)
        each = jnp.broadcast_to(
            each, (*before, groups, x.shape[axis] // groups, *after)
        )
        each = each.reshape(*before, x.shape[axis], *after)
        return sharding.shard_axis_like(each, x, axis)

    return jax.tree.map(repeat, tree)


def moments_per_channel(
    pooled: ShiftedMoments, over: Reduction, x: jax.Array
) -> ShiftedMoments:
    """Give every channel of `x` the moments of its group; the shift computed once.

    An overflow is shown, but not of rows in half precision: XLA:CPU makes one kernel of
    their moments and the output only if m2 is used once.
    """
    if not arguments.is_half(x) or x.ndim - 1 not in over.axis:
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
    r"""Differentiate the moments.

    .. math::
      \dot\mu = \frac1W \sum_i (w_i \dot x_i + \dot w_i c_i), \quad
      \dot M_2 = \sum_i (2 w_i c_i \dot x_i + \dot w_i c_i^2), \quad c_i = x_i - \mu

    Linear in the tangents, with one collective; so its transpose has one as well. A
    tangent of None is zero.
    """
    moments = moments_per_channel(pooled, over, x)
    t_sum, t_m2 = jnp.zeros_like(moments.mean), jnp.zeros_like(moments.m2)

    def terms(t_x: jax.Array, x: jax.Array, shift: jax.Array, weights: Any) -> Any:
        d = deviations(x, shift, 0, weights)
        inner_term = _weigh_linearly(inner(d, t_x), weights, x)
        if not over.centered:
            return (inner_term,)
        return inner_term, _weigh_linearly(t_x, weights, x)

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
    local = {"m2": t_m2}
    if over.centered:
        local["mean"] = t_sum
    if t_weights is not None:
        local["count"] = _count(x, t_weights, over.axis)
    local = _sum_groups(local, over, x)
    total = devices.sum_over_devices(local, over.axis_name, over.axis_index_groups)
    return ShiftedMoments(
        total.get("count", jnp.zeros_like(pooled.count)),
        jnp.zeros_like(pooled.shift),
        total.get("mean", jnp.zeros_like(pooled.mean)) * reciprocal(pooled.count),
        total["m2"],
    )


def drop_symbolic_zeros(tangents: Any) -> Any:
    """Replace the symbolic zeros of a custom_jvp rule by None."""

    def drop(tangent: Any) -> Any:
        symbolic = (
            isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0
        )
        return None if symbolic else tangent

    return jax.tree.map(drop, tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))


def _count(x: jax.Array, weights: jax.Array | None, axis: tuple[int, ...]) -> jax.Array:
    """Sum the weights over `axis` of `x`, axes kept."""
    dtype = jnp.finfo(arguments.statistics_dtype(x.dtype)).dtype
    sizes = (1,) * x.ndim if weights is None else weights.shape
    # The product is symbolic where shapes are, as in jax.export.
    repeats = jnp.asarray(math.prod(x.shape[a] for a in axis if sizes[a] == 1), dtype)
    if weights is None:
        return jnp.broadcast_to(repeats, sizes)
    return jnp.sum(weights, axis, dtype, keepdims=True) * repeats


def _shift(
    x: jax.Array,
    weights: jax.Array | None,
    count: jax.Array,
    over: Reduction,
    pack: bool,
) -> tuple[jax.Array, bool]:
    """Return a value near the mean of what has weight, and if it is the mean itself.

    One for all channels of a group. Moments that are not centered are about 0.
    """
    wide = x.astype(arguments.statistics_dtype(x.dtype))
    if not over.centered:  # the sum is dropped: only its type is looked at
        return jnp.zeros_like(_sum(wide, over.axis)), True
    if weights is not None:
        total = _sum(_weigh(wide, weights), over.axis)
        return _sum_groups(total, over, x) * reciprocal(count), True
    near, is_mean = sums.approximate_mean(x, over.axis, pack_last_axis=pack)
    if over.channel_groups is None:
        return near, is_mean
    axis, groups = over.channel_groups
    return _sum_groups(near, over, x) * (groups / max(x.shape[axis], 1)), is_mean


def _hold_repeated(shift: jax.Array, over: Reduction) -> jax.Array:
    """Hold what channels got of their group; a shift of their own is held already."""
    return shift if over.channel_groups is None else sums.hold(shift)


def _faster_together(x: jax.Array, over: Reduction) -> bool:
    """Whether XLA:CPU is faster with the moments of rows and the output in one kernel.

    It does so, or nearly so, if the sums over the last axis are left plain. In float32
    packed sums are faster where there are three. In half precision they are not, but in
    large arrays of fewer than 4096 rows, of which XLA makes several kernels.
    """
    if not all(isinstance(n, int) for n in x.shape):  # symbolic, as in jax.export
        return True
    if not arguments.is_half(x):
        return not over.centered
    rows = math.prod(n for a, n in enumerate(x.shape) if a not in over.axis)
    return rows >= 4096 or x.size < 2**17


def _sum(x: jax.Array, axis: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axis, keepdims=True)


def _weigh(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Return weights * x; what weight 0 covers is never multiplied."""
    if weights is None:
        return x
    x = jnp.where(_positive(weights), x, 0)
    return x if weights.dtype == bool else x * weights


def _weigh_linearly(t: jax.Array, weights: jax.Array | None, x: jax.Array) -> jax.Array:
    """Return weights * t, whose derivative in a weight of 0 is t where `x` is finite.

    What is not to be multiplied is told from `x`, as that is linear in `t`.
    """
    if weights is None or weights.dtype == bool:
        return _weigh(t, weights)
    return replace_unused(t, 0, x, weights) * weights


def _positive(weights: jax.Array) -> jax.Array:
    return weights if weights.dtype == bool else weights > 0


def _sum_groups(tree: Tree, over: Reduction, x: jax.Array) -> Tree:
    """Add up the channels of every group."""
    if over.channel_groups is None:
        return tree
    axis, groups = over.channel_groups
    channels = x.shape[axis]

    def add(v: jax.Array) -> jax.Array:
        before, after = v.shape[:axis], v.shape[axis + 1 :]
        v = jnp.broadcast_to(v, (*before, channels, *after))
        v = sharding.whole_parts(v, axis, groups)
        return jnp.sum(v.reshape(*before, groups, channels // groups, *after), axis + 1)

    return jax.tree.map(add, tree)
