"""Exchange small statistics between devices: the only collectives of this package.

`gather` and `sum_over_devices` issue one all-reduce for all their arrays (one each, if
the arrays are sharded over Explicit mesh axes besides). `collect` is the `gather` of
plain jit, where there is no axis name.

`lax.psum` is the one collective that means the same, and has the same type, under pmap,
vmap with an axis name, and shard_map with and without check_vma; its transpose is one
all-reduce as well. `lax.all_gather` gives a varying result under check_vma, and neither
takes axis_index_groups everywhere: psum does not under vmap, nor in shard_map with
check_vma. So gathering sums a table in which every device fills its own row, and groups
are rows of a table too. Statistics are a few values per feature: on few devices (see
`shifted.FEW_DEVICES`) sending the zeros costs less than a second collective.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.axes import AxisName, Groups
from jaxnorm.sharding import is_spread, vary

Tree = TypeVar("Tree")


def gather(tree: Tree, axis_name: AxisName) -> Tree:
    """Stack the leaves of all devices along a new leading axis."""
    row = jnp.arange(lax.axis_size(axis_name)) == lax.axis_index(axis_name)

    def gather_one(leaf: jax.Array) -> jax.Array:
        own = row.reshape((-1,) + (1,) * leaf.ndim)
        return lax.psum(jnp.where(own, leaf, 0), axis_name)

    return _packed(gather_one, tree)


def collect(tree: Tree, rows: int) -> Tree:
    """Give every device all rows of the leaves, which the compiler has spread.

    A leaf of one row has it in common to all. This sums a table in which every row
    fills its own, again: XLA makes one all-reduce for all leaves.
    """
    own = jnp.eye(rows, dtype=bool)

    def add_up(leaf: jax.Array) -> jax.Array:
        table = own.reshape(rows, rows, *(1,) * (leaf.ndim - 1))
        return jnp.sum(jnp.where(table, leaf[:, None], 0), 0)

    return jax.tree.map(add_up, tree)


def sum_over_devices(
    tree: Tree, axis_name: AxisName | None, groups: Groups | None
) -> Tree:
    """Sum every leaf over the devices, or those of this device's group."""
    if axis_name is None:
        return tree
    if groups is None:

        def add_all(flat: jax.Array) -> jax.Array:
            # In shard_map, psum takes no array that varies along some of the axes only.
            return lax.psum(vary(flat, lax.axis_index(axis_name)), axis_name)

        return _packed(add_all, tree)
    mine = _group_of_each_device(groups)[lax.axis_index(axis_name)]
    row = jnp.arange(len(groups)) == mine

    def add(leaf: jax.Array) -> jax.Array:
        own = row.reshape((-1,) + (1,) * leaf.ndim)
        table = lax.psum(jnp.where(own, leaf, 0), axis_name)
        return jnp.sum(jnp.where(own, table, 0), 0)

    return _packed(add, tree)


def same_group(axis_name: AxisName, groups: Groups) -> jax.Array:
    """Say of each device whether it is in the group of this one."""
    group = _group_of_each_device(groups)
    return group == group[lax.axis_index(axis_name)]


def _group_of_each_device(groups: Groups) -> jax.Array:
    pairs = sorted((i, g) for g, group in enumerate(groups) for i in group)
    return jnp.asarray([g for _, g in pairs])


def _packed(collective: Callable[[jax.Array], jax.Array], tree: Tree) -> Tree:
    """Apply `collective` once, to a vector made of all leaves; or to each of them.

    What it returns may have further axes in front.
    """
    leaves, structure = jax.tree.flatten(tree)
    if any(is_spread(leaf) for leaf in leaves):  # over further, Explicit axes
        return jax.tree.map(collective, tree)
    dtype = jnp.result_type(*leaves)
    flat = collective(jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves]))
    results, start = [], 0
    for leaf in leaves:
        part = lax.slice_in_dim(flat, start, start + leaf.size, axis=-1)
        part = part.reshape(*flat.shape[:-1], *leaf.shape)
        part = part if jnp.iscomplexobj(leaf) else part.real
        results.append(part.astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, results)
