"""Moments that keep all their digits: merged, and pooled over devices.

The mean is held as shift + mean, of which the second part is small. Their sum, a
float32 mean, rounds away up to half a unit in its last place: at mean/std = 1e6 that is
3% of std. So they travel apart until the very end.

Devices exchange (count, shift, mean, m2) in one collective, and each merges the same
list in the same order, so all of them hold the same bits.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import devices
from jaxnorm.axes import AxisName
from jaxnorm.devices import Groups


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
    counts = parts.count
    present = counts > 0
    total = add(counts)
    share = counts * reciprocal(total)
    # The shift of the largest part lies near the mean of all; relative to it, all
    # digits of the differences survive. Choosing rounds nothing.
    places = lax.broadcasted_iota(jnp.int32, counts.shape, 0)
    largest = present & (places == jnp.argmax(counts, 0, keepdims=True))
    shift = add(jnp.where(largest, parts.shift, 0))
    offset = jnp.where(present, (parts.shift - shift) + parts.mean, 0)
    mean = add(offset * share)
    between = add(counts * square(offset - mean))
    m2 = add(jnp.where(present, parts.m2, 0)) + between
    merged = ShiftedMoments(total, shift, mean, m2)
    return jax.tree.map(lambda v: jnp.squeeze(v, 0), merged)


def pool(
    moments: ShiftedMoments, axis_name: AxisName | None, groups: Groups | None
) -> ShiftedMoments:
    """Merge the moments of all devices along `axis_name`, or of this one's group."""
    if axis_name is None:
        return moments
    parts = devices.gather(moments, axis_name)
    if groups is not None:
        mine = devices.same_group(axis_name, groups)
        mine = mine.reshape((-1,) + (1,) * (parts.count.ndim - 1))
        parts = parts._replace(count=jnp.where(mine, parts.count, 0))
    return merge(parts)


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
