"""Moments that keep all their digits: merged, and pooled over devices.

The mean is held as shift + mean, of which the second part is small. Their sum, a
float32 mean, rounds away up to half a unit in its last place: at mean/std = 1e6 that is
3% of std. So they travel apart until the very end.

Devices exchange (count, shift, mean, m2) in one collective, and each merges the same
list in the same order, so all of them hold the same bits. That list grows with their
number. Many devices take two collectives instead, of the size of the statistics: the
first finds a mean, from which they then all measure.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import devices
from jaxnorm.arithmetic import reciprocal, settle, square
from jaxnorm.axes import AxisName, Groups

# From more devices than these, gathering costs more than a second collective.
FEW_DEVICES = 32


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


def merge(parts: ShiftedMoments) -> ShiftedMoments:
    """Merge along the first axis of every leaf. Parts of count 0 are left out."""
    add = partial(jnp.sum, axis=0, keepdims=True)
    present = parts.count > 0
    counts = jnp.where(present, parts.count, 0)  # without a derivative where it is 0
    total = add(counts)
    share = counts * reciprocal(total)
    # The shift of the largest part lies near the common mean; relative to it, all
    # digits of the differences survive. Choosing one rounds nothing.
    places = lax.broadcasted_iota(jnp.int32, counts.shape, 0)
    largest = present & (places == lax.argmax(counts, 0, jnp.int32)[None])
    shift = add(jnp.where(largest, parts.shift, 0))
    offset = jnp.where(present, (parts.shift - shift) + parts.mean, 0)
    mean = add(offset * share)
    between = add(counts * square(offset - mean))
    m2 = add(jnp.where(present, parts.m2, 0)) + between
    merged = ShiftedMoments(total, shift, mean, m2)
    return jax.tree.map(lambda v: jnp.squeeze(v, 0), merged)


def merge_alike(
    count: jax.Array, shift: jax.Array, mean: jax.Array, m2: jax.Array
) -> ShiftedMoments:
    """Merge parts, along the first axis, which all have one count that is not 0.

    As `merge`, in fewer operations: on an accelerator each takes as long as a sum.
    """
    number = shift.shape[0]
    first = lax.index_in_dim(shift, 0)
    offset = (shift - first) + mean
    common = jnp.sum(offset * (1 / number), 0, keepdims=True)
    between = count * jnp.sum(square(offset - common), 0)
    first, common = (jnp.squeeze(v, 0) for v in (first, common))
    return ShiftedMoments(count * number, first, common, jnp.sum(m2, 0) + between)


def pool(
    moments: ShiftedMoments,
    axis_name: AxisName,
    groups: Groups | None,
    *,
    alike: bool = False,
) -> ShiftedMoments:
    """Merge the moments of all devices along `axis_name`, or of this one's group.

    `alike` says that all have one count, which is not 0.
    """
    if lax.axis_size(axis_name) > FEW_DEVICES:
        return _pool_in_two_rounds(moments, axis_name, groups)
    if alike and groups is None:
        return merge_alike(moments.count, *devices.gather(moments[1:], axis_name))
    parts = devices.gather(moments, axis_name)
    if groups is not None:
        mine = devices.same_group(axis_name, groups)
        mine = mine.reshape((-1,) + (1,) * (parts.count.ndim - 1))
        parts = parts._replace(count=jnp.where(mine, parts.count, 0))
    return merge(parts)


def _pool_in_two_rounds(
    moments: ShiftedMoments, axis_name: AxisName, groups: Groups | None
) -> ShiftedMoments:
    """Find a common shift near the mean of all, then sum what is relative to it."""
    count, own_shift, own_mean, own_m2 = moments
    present = count > 0
    count = jnp.where(present, count, 0)

    def add(*values: jax.Array) -> tuple[jax.Array, ...]:
        return devices.sum_over_devices(values, axis_name, groups)

    total, weighted = add(count, jnp.where(present, count * (own_shift + own_mean), 0))
    shift = settle(weighted * reciprocal(total))
    offset = jnp.where(present, (own_shift - shift) + own_mean, 0)
    m2 = jnp.where(present, own_m2, 0) + count * square(offset)
    offsets, m2 = add(count * offset, m2)
    mean = offsets * reciprocal(total)
    m2 -= total * square(mean)
    # Rounding may leave it below 0, where a maximum has no derivative.
    m2 += lax.stop_gradient(jnp.maximum(m2, 0) - m2)
    return ShiftedMoments(total, shift, mean, m2)
