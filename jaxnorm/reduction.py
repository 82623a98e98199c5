"""What is reduced together: axes of an array, groups of channels, device axes."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxnorm import sharding
from jaxnorm.axes import AxisName, Groups

Tree = TypeVar("Tree")


class Reduction(NamedTuple):
    """What is reduced: axes of the array, groups of channels, a device axis. Hashable.

    `channel_groups` is (axis, G): along that axis, which is not among `axis`, the
    moments of C / G neighbouring channels are pooled, and G are left.
    `centered=False` takes moments about zero (root mean square) instead of the mean.
    `whole_axis` is one of `axis` that the compiler does not spread over devices.
    """

    axis: tuple[int, ...]
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None
    centered: bool = True
    channel_groups: tuple[int, int] | None = None
    whole_axis: int | None = None

    @property
    def all_axes(self) -> tuple[int, ...]:
        """The axes of the array whose elements are normalized together."""
        if self.channel_groups is None:
            return self.axis
        return tuple(sorted((*self.axis, self.channel_groups[0])))


def sum_groups(tree: Tree, over: Reduction, x: jax.Array) -> Tree:
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
