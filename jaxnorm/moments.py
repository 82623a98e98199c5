"""Weighted moments: compute them, merge them, pool them over devices."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import arguments, axes, dtypes, measuring, shifted
from jaxnorm.arithmetic import reciprocal
from jaxnorm.axes import Axes, AxisGroups, AxisName
from jaxnorm.exporting import serializable
from jaxnorm.reduction import Reduction
from jaxnorm.shifted import ShiftedMoments


@serializable
class Moments(NamedTuple):
    """Weighted moments of a set of values.

    Attributes:
      count: sum of the weights; a scalar, or broadcastable to `mean`. With leading axes
        that vmap or pmap added, one count for every set.
      mean: weighted mean.
      m2: weighted sum of squared deviations from the mean; always real.
    """

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as documented
    mean: jax.Array
    m2: jax.Array

    @property
    def var(self) -> jax.Array:
        """The biased variance, m2 / count; 0 where count is 0."""
        count, m2 = jnp.asarray(self.count), jnp.asarray(self.m2)
        count = _align_count(count, m2.shape)
        return jnp.where(count > 0, m2, 0) * reciprocal(count)


def compute_moments(
    x: ArrayLike,
    axis: Axes,
    *,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisGroups | None = None,
) -> Moments:
    """Compute the weighted moments of `x` over `axis`, and over devices.

        count = sum(weights)
        mean  = sum(weights * x) / count
        m2    = sum(weights * |x - mean|^2)

    Args:
      x: array of a floating-point or complex dtype, any rank.
      axis: axis or axes of `x` that are reduced.
      weights: bool mask or non-negative weights that broadcast to `x`. Give them the
        rank of `x` if a shorter shape could be meant for its first axes as well as for
        its last: if it fits both, and reaches as many of the reduced axes there. An
        element of weight 0 has no influence, whatever it holds (NaN and infinities
        too).
      axis_name: name, or tuple of names, of pmap, vmap or shard_map axes to pool over,
        with one collective (two of more than 32 devices). If `x` is replicated along an
        axis, every copy is counted. Not needed under plain jit on sharded arrays.
      axis_index_groups: groups of indices of `axis_name` that pool among themselves.

    Returns:
      Moments without the reduced axes, in at least float32. While |mean|/std is up to
      1e6, the mean is right to one unit in its last place plus 3e-7 of std, and the
      variance to a relative 2e-6. Adverse outliers, all in the rows that the shift is
      sampled from, raise the first to 1.2e-6 of std at worst, and the second to 7e-6
      (4e-5 in half precision, whose values are themselves rounded by 5e-4 or more). An
      empty set has count, mean and m2 equal to 0.

    Raises:
      TypeError: if `x` is neither floating-point nor complex, or `weights` are neither
        bool nor real.
      ValueError: if `axis` is out of range or repeated, nothing is left to reduce,
        `weights` are negative or not finite, do not broadcast, or could be meant for
        the first axes as well as for the last, or `axis_name` is not bound.

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
    x = arguments.check_input(x, caller=caller)
    axis = axes.canonicalize_axes(axis, x.ndim, caller=caller, name="axis")
    axes.check_reduced(x, axis, axis_name, caller=caller)
    groups = axes.check_axis_name(axis_name, axis_index_groups, caller=caller)
    weights = arguments.expand_weights(weights, x, reduced=axis, caller=caller)
    over = Reduction(axis, axis_name, groups)
    moments = measuring.measure_alone(x, weights, over)
    return collapse(moments, axis)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Merge the moments of two disjoint sets into those of their union.

        count = a.count + b.count
        mean  = a.mean + (b.mean - a.mean) * b.count / count
        m2    = a.m2 + b.m2 + |b.mean - a.mean|^2 * a.count * b.count / count

    Associative and commutative to rounding. An empty set (count 0) is the identity,
    whatever its mean and m2 hold.

    The mean of each set is a single number, whose rounding puts the variance of the
    union off by up to eps * |mean| / std. In float32 that is 1e-3 near 1e4 standard
    deviations, and 12% near 1e6. (Moments that `compute_moments` or a norm pools over
    `axis_name` keep all digits until they are merged.) For data so far from zero,
    compute moments in float64, or center the data first.

    Args:
      a: Moments of one set.
      b: Moments of another set, of shapes that broadcast with those of `a`.

    Returns:
      Moments of the union. Its count has the shape of the longer of the two; where one
      counts sets and the other features, it has both axes.

    Raises:
      TypeError: if one of them is not Moments.
      ValueError: if the shapes of `a` and `b` do not broadcast.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> a = jn.compute_moments(jnp.array([1.0, 2.0]), axis=0)
      >>> b = jn.compute_moments(jnp.array([6.0]), axis=0)
      >>> count, mean, m2 = jn.merge_moments(a, b)
      >>> print(f"{count:.3f} {mean:.3f} {m2:.3f}")
      3.000 3.000 14.000

      The moments of a data set in batches of several sizes, as running statistics:

      >>> from functools import reduce
      >>> batches = jnp.ones((32, 2)), jnp.zeros((6, 2))
      >>> moments = [jn.compute_moments(batch, axis=0) for batch in batches]
      >>> whole = reduce(jn.merge_moments, moments)
      >>> stats = jn.NormStats(whole.mean, whole.var, jnp.ones(()))

    Reference:
      Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for
      computing sample variances, Stanford STAN-CS-79-773, 1979.
    """
    pair = _check_pair(a, b, caller="merge_moments")
    return _merge_pair(*map(_shifted, pair), (np.shape(a.count), np.shape(b.count)))


def pool_moments(
    moments: Moments,
    axis_name: AxisName,
    *,
    axis_index_groups: AxisGroups | None = None,
) -> Moments:
    """Merge the moments that devices hold, with one collective (two of more than 32).

    As in `merge_moments`, their means have been rounded. `compute_moments(...,
    axis_name=...)` pools with all digits.

    Args:
      moments: the moments of this device's set.
      axis_name: name, or tuple of names, of the pmap, vmap or shard_map axes.
      axis_index_groups: groups of indices of `axis_name` that pool among themselves.

    Returns:
      Moments of the union, bit for bit the same on every device that shares in it.

    Raises:
      TypeError: if `moments` are not Moments.
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
    caller = "pool_moments"
    given, moments = moments, check_moments(moments, caller=caller)
    if axis_name is None:
        raise ValueError(
            f"{caller}: axis_name must name the axes to pool over. Received "
            "axis_name=None; leave the call out where there is one device."
        )
    groups = axes.check_axis_name(axis_name, axis_index_groups, caller=caller)
    pooled = shifted.pool(_shifted(moments), axis_name, groups)
    return _plain(pooled, np.shape(given.count))


def collapse(
    moments: ShiftedMoments, axis: tuple[int, ...], dtype: DTypeLike | None = None
) -> Moments:
    """Return plain Moments without the reduced axes; the mean in at least `dtype`."""
    count = moments.count
    count = count.reshape(()) if count.size == 1 else jnp.squeeze(count, axis)
    shift = moments.shift
    if dtype is not None:  # a float32 mean would have lost what float64 can hold
        shift = shift.astype(jnp.promote_types(dtype, shift.dtype))
    mean = jnp.squeeze(shift + moments.mean.astype(shift.dtype), axis)
    return Moments(count, mean, jnp.squeeze(moments.m2, axis))


def check_moments(moments: Any, *, caller: str) -> Moments:
    """Return moments, of arrays of float32 or more; the count has the mean's rank."""
    if not isinstance(moments, Moments):
        raise TypeError(
            f"{caller}: moments must be Moments(count, mean, m2). Received "
            f"{type(moments).__name__}; jaxnorm.compute_moments makes them from an "
            "array."
        )
    leaves = arguments.as_arrays(moments, caller=caller, name="moments")
    count, mean, m2 = map(_widened, leaves)
    real = {"moments.count": count, "moments.m2": m2}
    arguments.check_real("a count and an m2 are", real, caller=caller)
    return Moments(_align_count(count, mean.shape), mean, m2)


def _widened(leaf: jax.Array) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf.astype(jnp.result_type(float))
    return leaf.astype(dtypes.statistics_dtype(leaf.dtype))


@partial(jax.jit, static_argnums=(2,), inline=True)  # see normalize_by_statistics
def _merge_pair(
    a: ShiftedMoments, b: ShiftedMoments, counts: tuple[tuple[int, ...], ...]
) -> Moments:
    """Merge two sets, whose counts were given in these shapes."""
    stack = jax.tree.map(lambda *v: jnp.stack(jnp.broadcast_arrays(*v)), a, b)
    return _plain(shifted.merge(stack), *counts)


def _shifted(moments: Moments) -> ShiftedMoments:
    count, mean, m2 = moments
    return ShiftedMoments(count, mean, jnp.zeros_like(mean), m2)


def _check_pair(a: Any, b: Any, *, caller: str) -> tuple[Moments, Moments]:
    """Return the moments of two sets, of arrays, if their shapes broadcast."""
    pair = check_moments(a, caller=caller), check_moments(b, caller=caller)
    try:
        jnp.broadcast_shapes(*(leaf.shape for moments in pair for leaf in moments))
    except ValueError:
        shapes = [tuple(jnp.shape(leaf) for leaf in moments) for moments in (a, b)]
        raise ValueError(
            f"{caller}: moments of two sets must have shapes that broadcast. Received "
            f"(count, mean, m2) of shapes {shapes[0]} and {shapes[1]}; reduce the same "
            "axes of both."
        ) from None
    return pair


def _align_count(count: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Give a count the rank of what it counts; of sets stacked in front, one a set."""
    return count.reshape(_aligned(count.shape, shape))


def _aligned(count: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    more = (1,) * (len(shape) - len(count))
    return (*count, *more) if count == shape[: len(count)] else (*more, *count)


def _plain(merged: ShiftedMoments, *given: tuple[int, ...]) -> Moments:
    """Return plain Moments, with a count of the longest of the given shapes.

    So merging can be a step of `lax.scan`, whose carry keeps its shapes. (Counts of
    sets in front, merged with counts of features, have neither shape.)
    """
    count, shift, mean, m2 = merged
    longest = max(given, key=lambda shape: (len(shape), math.prod(shape)))
    if count.shape == _aligned(longest, shift.shape):
        count = count.reshape(longest)
    return Moments(count, shift + mean, m2)
