"""Weighted moments: compute them, merge them, pool them over devices.

Numerics, in one place:

- Everything is computed in at least float32; complex input has a real m2.
- Deviations are taken from a *shift* near the mean: d = x - shift is exact where it
  matters, and mean = shift + E[d], m2 = sum(d^2) - count * E[d]^2 keep the digits that
  E[x^2] - E[x]^2 loses (Chan, Golub and LeVeque 1983).
- The shift and E[d] travel apart until the very end. Their sum, a float32 mean, rounds
  away up to half a unit in its last place: at mean/std = 1e6 that is 3% of std.
- Devices exchange (count, shift, E[d], m2) in one collective, and each merges the same
  list in the same order, so all of them hold the same bits.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxnorm import axes, devices, sums
from jaxnorm.axes import Axes, AxisGroups, AxisName


class Moments(NamedTuple):
    """Weighted moments of a set of values.

    Attributes:
      count: sum of the weights; a scalar, or broadcastable to `mean`.
      mean: weighted mean.
      m2: weighted sum of squared deviations from the mean; always real.
    """

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as documented
    mean: jax.Array
    m2: jax.Array

    @property
    def var(self) -> jax.Array:
        """The biased variance, m2 / count; 0 where count is 0."""
        return self.m2 * reciprocal(self.count)


class ShiftedMoments(NamedTuple):
    """Moments whose mean is shift + mean; reduced axes are kept with size 1."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count
    shift: jax.Array
    mean: jax.Array
    m2: jax.Array

    @property
    def var(self) -> jax.Array:
        """The biased variance, m2 / count; 0 where count is 0."""
        return self.m2 * reciprocal(self.count)

    def collapse(self, axis: tuple[int, ...]) -> Moments:
        """Return plain Moments without the reduced axes."""
        count = self.count
        count = count.reshape(()) if count.size == 1 else jnp.squeeze(count, axis)
        mean = jnp.squeeze(self.shift + self.mean, axis)
        return Moments(count, mean, jnp.squeeze(self.m2, axis))


class Reduction(NamedTuple):
    """What is reduced: axes of the array, then a device axis. Hashable.

    `centered=False` takes moments about zero (root mean square) instead of the mean.
    """

    axis: tuple[int, ...]
    axis_name: AxisName | None = None
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    centered: bool = True


def compute_moments(
    x: ArrayLike,
    axis: Axes,
    *,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
) -> Moments:
    r"""Compute the weighted moments of `x` over `axis`, and over devices.

    .. math::
      W = \sum_i w_i, \quad \mu = \frac{1}{W} \sum_i w_i x_i, \quad
      M_2 = \sum_i w_i |x_i - \mu|^2

    Args:
      x: array of a floating-point or complex dtype, any rank.
      axis: axis or axes of `x` that are reduced.
      weights: bool mask or non-negative weights that broadcast to `x`. An element of
        weight 0 has no influence, whatever it holds (NaN and infinities too).
      axis_name: name, or tuple of names, of pmap, vmap or shard_map axes to pool over,
        with one collective. Not needed under plain jit on sharded arrays.
      axis_index_groups: groups of indices of `axis_name` that pool among themselves.

    Returns:
      Moments without the reduced axes, in at least float32. The mean is right to one
      unit in its last place, the variance to a relative 2e-6, while |mean|/std is
      up to 1e6. An empty set has count, mean and m2 equal to 0.

    Raises:
      TypeError: if `x` is neither floating-point nor complex.
      ValueError: if `axis` is out of range or repeated, nothing is left to reduce,
        `weights` do not broadcast, or `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> moments = jn.compute_moments(jnp.array([[1.0, 5.0], [3.0, 9.0]]), axis=0)
      >>> print(moments.mean, moments.var, moments.count)
      [2. 7.] [1. 4.] 2.0

    Reference:
      Chan, Golub and LeVeque, Algorithms for computing the sample variance, The
      American Statistician 37, 1983.
    """
    caller = "compute_moments"
    x = axes.check_input(x, caller=caller)
    axis = axes.canonicalize_axes(axis, x.ndim, caller=caller, name="axis")
    axes.check_reduced(x, axis, axis_name, caller=caller)
    groups = axes.check_axis_name(axis_name, axis_index_groups, caller=caller)
    weights = axes.expand_weights(weights, x, caller=caller)
    return _measure(x, weights, Reduction(axis, axis_name, groups)).collapse(axis)


def merge_moments(a: Moments, b: Moments) -> Moments:
    r"""Merge the moments of two disjoint sets into those of their union.

    .. math::
      \delta = \mu_b - \mu_a, \quad \mu = \mu_a + \delta \frac{W_b}{W}, \quad
      M_2 = M_{2,a} + M_{2,b} + |\delta|^2 \frac{W_a W_b}{W}

    Associative and commutative to rounding. An empty set (count 0) is the identity,
    whatever its mean and m2 hold.

    Args:
      a: Moments of one set.
      b: Moments of another set, of shapes that broadcast with those of `a`.

    Returns:
      Moments of the union.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> a = jn.compute_moments(jnp.array([1.0, 2.0]), axis=0)
      >>> b = jn.compute_moments(jnp.array([6.0]), axis=0)
      >>> print(jn.merge_moments(a, b))
      Moments(count=..., mean=..., m2=...)

    Reference:
      Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for
      computing sample variances, Stanford STAN-CS-79-773, 1979.
    """
    pair = _shifted(a), _shifted(b)
    stack = jax.tree.map(lambda *v: jnp.stack(jnp.broadcast_arrays(*v)), *pair)
    return _merge(stack).collapse(())


def pool_moments(
    moments: Moments,
    axis_name: AxisName,
    *,
    axis_index_groups: AxisGroups | None = None,
) -> Moments:
    """Merge the moments that devices hold, with one collective.

    Args:
      moments: the moments of this device's set.
      axis_name: name, or tuple of names, of the pmap, vmap or shard_map axes.
      axis_index_groups: groups of indices of `axis_name` that pool among themselves.

    Returns:
      Moments of the union, bit for bit the same on every device that shares in it.

    Raises:
      ValueError: if `axis_name` is not bound, or the groups do not divide it evenly.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> def pooled_mean(x):
      ...     return jn.pool_moments(jn.compute_moments(x, axis=0), "data").mean
      >>> shards = jnp.array([[1.0, 2.0], [3.0, 6.0]])
      >>> print(jax.vmap(pooled_mean, axis_name="data")(shards))
      [3. 3.]
    """
    groups = axes.check_axis_name(axis_name, axis_index_groups, caller="pool_moments")
    return _pool(_shifted(moments), Reduction((), axis_name, groups)).collapse(())


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _measure(
    x: jax.Array, weights: jax.Array | None, over: Reduction
) -> ShiftedMoments:
    return measure(x, weights, over)


@partial(_measure.defjvp, symbolic_zeros=True)
def _measure_jvp(over: Reduction, primals: Any, tangents: Any) -> Any:
    moments = _measure(*primals, over)

    # Checkpointed, so that x itself is what a linearization keeps.
    @partial(jax.checkpoint, prevent_cse=False)
    def differentiate(primals: Any, moments: Any, tangents: Any) -> ShiftedMoments:
        (x, weights), (t_x, t_weights) = primals, tangents
        d, _ = deviations(x, moments.shift, weights)
        if t_x is not None:
            t_x = t_x.astype(d.dtype)
        return moment_tangents(d, weights, t_x, t_weights, moments, over)

    return moments, differentiate(primals, moments, nonzero(tangents))


def reciprocal(count: jax.Array) -> jax.Array:
    """Return 1 / count, and 0 where count is 0."""
    empty = count == 0
    return jnp.where(empty, 0, 1 / jnp.where(empty, 1, count))


def square(x: jax.Array) -> jax.Array:
    """Return |x|^2, real also for complex input, smooth at 0."""
    return inner(x, x)


def inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the real part of conj(x) * y."""
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return x.real * y.real + x.imag * y.imag
    return x * y


def deviations(
    x: jax.Array, shift: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Return x - shift in the dtype of statistics, and where `x` is used.

    An element of weight 0 that is not finite would spoil gradients through 0 * NaN; it
    is taken to lie at the shift. `None` says that every element is used.
    """
    d = x.astype(shift.dtype) - shift
    if weights is None:
        return d, None
    used = (weights > 0) | jnp.isfinite(x)
    return jnp.where(used, d, 0), used


def measure(x: jax.Array, weights: jax.Array | None, over: Reduction) -> ShiftedMoments:
    """Compute and pool moments; without a derivative rule of its own."""

    def terms(x: jax.Array, shift: jax.Array, weights: Any) -> Any:
        d = x.astype(shift.dtype) - shift
        return _weigh(d, weights), _weigh(square(d), weights)

    count = _count(x, weights, over.axis)
    shift = _shift(x, weights, count, over)
    if x.dtype == shift.dtype:  # input of half precision has no digits to lose there
        shift = _settle(shift)
    first, second = sums.sum_pair(terms, (x, shift, weights), over.axis)
    mean = first * reciprocal(count) if over.centered else jnp.zeros_like(shift)
    m2 = jnp.maximum(second - count * square(mean), 0)
    return _pool(ShiftedMoments(count, shift, mean, m2), over)


def moment_tangents(
    d: jax.Array,
    weights: jax.Array | None,
    t_x: jax.Array | None,
    t_weights: jax.Array | None,
    moments: ShiftedMoments,
    over: Reduction,
) -> ShiftedMoments:
    r"""Differentiate the moments, given deviations `d` from the shift.

    .. math::
      \dot\mu = \frac1W \sum_i (w_i \dot x_i + \dot w_i c_i), \quad
      \dot M_2 = \sum_i (2 w_i c_i \dot x_i + \dot w_i c_i^2), \quad c_i = x_i - \mu

    Linear in the tangents, with one collective; so its transpose has one as well. A
    tangent of None is zero.
    """
    c = d - moments.mean
    t_sum, t_m2 = jnp.zeros_like(moments.mean), jnp.zeros_like(moments.m2)
    if t_x is not None:
        t_sum += _weighted_sum(t_x, weights, over.axis)
        t_m2 += 2 * _weighted_sum(inner(c, t_x), weights, over.axis)
    if t_weights is not None:
        t_sum += _sum(t_weights * c, over.axis)
        t_m2 += _sum(t_weights * square(c), over.axis)
    local = {"m2": t_m2}
    if over.centered:
        local["mean"] = t_sum
    if t_weights is not None:
        local["count"] = _count(d, t_weights, over.axis)
    total = devices.sum_over_devices(local, over.axis_name, over.axis_index_groups)
    t_shift = jnp.zeros_like(moments.shift)
    return ShiftedMoments(
        total.get("count", jnp.zeros_like(moments.count)),
        t_shift,
        total.get("mean", t_shift) * reciprocal(moments.count),
        total["m2"],
    )


def nonzero(tangents: Any) -> Any:
    """Replace the symbolic zeros of a custom_jvp rule by None."""

    def drop(tangent: Any) -> Any:
        symbolic = (
            isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0
        )
        return None if symbolic else tangent

    return jax.tree.map(drop, tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))


def _count(x: jax.Array, weights: jax.Array | None, axis: tuple[int, ...]) -> jax.Array:
    """Sum the weights over `axis` of `x`, axes kept."""
    dtype = jnp.finfo(axes.statistics_dtype(x.dtype)).dtype
    if weights is None:
        weights = jnp.ones((1,) * x.ndim, dtype)
    repeats = 1
    for a in axis:
        repeats *= x.shape[a] if weights.shape[a] == 1 else 1
    return jnp.sum(weights, axis, dtype, keepdims=True) * float(repeats)


def _shift(
    x: jax.Array, weights: jax.Array | None, count: jax.Array, over: Reduction
) -> jax.Array:
    """Return a value near the mean, of elements of non-zero weight."""
    wide = x.astype(axes.statistics_dtype(x.dtype))
    if not over.centered:
        return jnp.zeros_like(_sum(wide, over.axis))
    if weights is not None:
        return _weighted_sum(wide, weights, over.axis) * reciprocal(count)
    return sums.approximate_mean(x, over.axis)


def _sum(x: jax.Array, axis: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axis, keepdims=True)


def _weighted_sum(
    x: jax.Array, weights: jax.Array | None, axis: tuple[int, ...]
) -> jax.Array:
    return _sum(_weigh(x, weights), axis)


def _weigh(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Return weights * x; what weight 0 covers is never multiplied."""
    if weights is None:
        return x
    x = jnp.where(weights > 0, x, 0)
    return x if weights.dtype == bool else x * weights


def _settle(shift: jax.Array) -> jax.Array:
    """Round to one bit less than the dtype holds, so that all users see one value.

    XLA computes a value anew where it is used, and there may fuse its last product into
    a subtraction, unrounded. Deviations and moments would then refer to shifts that are
    half a unit in the last place apart: at mean/std = 1e6 that is 3% of std. Explicit
    rounding cannot be fused away (optimization_barrier can, on CPU).
    """
    if jnp.iscomplexobj(shift):
        return lax.complex(_settle(shift.real), _settle(shift.imag))
    info = jnp.finfo(shift.dtype)
    return lax.reduce_precision(shift, info.nexp, info.nmant - 1)


def _shifted(moments: Moments) -> ShiftedMoments:
    count, mean, m2 = (jnp.asarray(leaf) for leaf in moments)
    count = count.reshape((1,) * (mean.ndim - count.ndim) + count.shape)
    return ShiftedMoments(count, mean, jnp.zeros_like(mean), m2)


def _merge(parts: ShiftedMoments) -> ShiftedMoments:
    """Merge along the leading axis of every leaf. Parts of count 0 are left out."""
    counts = parts.count
    present = counts > 0
    total = jnp.sum(counts, 0)
    share = counts * reciprocal(total)
    # Shifts of different parts lie near each other: taken relative to their average,
    # all digits of the differences survive.
    shift = _settle(jnp.sum(jnp.where(present, parts.shift, 0) * share, 0))
    offset = jnp.where(present, (parts.shift - shift) + parts.mean, 0)
    mean = jnp.sum(offset * share, 0)
    between = jnp.sum(counts * square(offset - mean), 0)
    m2 = jnp.sum(jnp.where(present, parts.m2, 0), 0) + between
    return ShiftedMoments(total, shift, mean, m2)


def _pool(moments: ShiftedMoments, over: Reduction) -> ShiftedMoments:
    """Merge the moments of all devices along `over.axis_name`."""
    if over.axis_name is None:
        return moments
    parts = devices.gather(moments, over.axis_name)
    if over.axis_index_groups is not None:
        mine = devices.same_group(over.axis_name, over.axis_index_groups)
        mine = mine.reshape((-1,) + (1,) * (parts.count.ndim - 1))
        parts = parts._replace(count=jnp.where(mine, parts.count, 0))
    return _merge(parts)
