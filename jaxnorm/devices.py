"""Exchange small statistics between devices: the only collectives of this package.

`gather` and `sum_over_devices` issue one all-reduce, whatever they are given.
`lax.psum` is the one collective that means the same, and has the same type, under pmap,
vmap with an axis name, and shard_map with and without check_vma; its transpose is one
all-reduce as well. `lax.all_gather` gives a varying result under check_vma, and neither
takes axis_index_groups everywhere: psum does not under vmap, nor in shard_map with
check_vma. So gathering is summing a table in which every device fills its own row, and
groups are rows of a table too. Statistics are a few values per feature: the zeros cost
less than a second collective would.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnorm.axes import AxisName

Groups = tuple[tuple[int, ...], ...]
Tree = TypeVar("Tree")


def gather(tree: Tree, axis_name: AxisName) -> Tree:
    """Stack the leaves of all devices along a new leading axis."""
    row = jnp.arange(lax.axis_size(axis_name)) == lax.axis_index(axis_name)

    def place(leaf: jax.Array) -> jax.Array:
        return jnp.where(row.reshape((-1,) + (1,) * leaf.ndim), leaf, 0)

    return _packed(lambda flat: lax.psum(flat, axis_name), jax.tree.map(place, tree))


def sum_over_devices(
    tree: Tree, axis_name: AxisName | None, groups: Groups | None
) -> Tree:
    """Sum every leaf over the devices, or those of this device's group."""
    if axis_name is None:
        return tree
    if groups is None:
        return _packed(lambda flat: lax.psum(flat, axis_name), tree)
    mine = _group_of_each_device(groups)[lax.axis_index(axis_name)]
    row = (jnp.arange(len(groups)) == mine)[:, None]

    def add(flat: jax.Array) -> jax.Array:
        table = lax.psum(jnp.where(row, flat, 0), axis_name)
        return jnp.sum(jnp.where(row, table, 0), 0)

    return _packed(add, tree)


def same_group(axis_name: AxisName, groups: Groups) -> jax.Array:
    """Say of each device whether it is in the group of this one."""
    group = _group_of_each_device(groups)
    return group == group[lax.axis_index(axis_name)]


def vary_like(
    examples: Sequence[jax.Array | None], arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    """Mark arrays of one shape as differing between devices where an example does.

    Inside shard_map with check_vma a cotangent is summed over devices where its value
    begins to vary. Left alone, that is in several places, so several collectives;
    stacked it is one.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return list(arrays)
    return list(vary(jnp.stack(arrays), *examples))


def vary(tree: Tree, *examples: jax.Array | None) -> Tree:
    """Mark leaves as differing between devices wherever an example does."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree

    def mark(leaf: jax.Array) -> jax.Array:
        for example in examples:
            if example is not None:  # a zero that varies as the example does
                leaf += lax.full_like(example, 0, leaf.dtype, (1,) * leaf.ndim)
        return leaf

    return jax.tree.map(mark, tree)


def shard_like(x: jax.Array, axis: int, value: jax.Array) -> jax.Array:
    """Spread `value` over devices as `x` is along `axis`.

    On a mesh of Explicit axes, arrays that are combined must agree in that.
    """
    like, own = jax.typeof(x).sharding, jax.typeof(value).sharding
    if not like.mesh.explicit_axes:
        return value
    spec = [like.spec[a] if a == axis else own.spec[a] for a in range(x.ndim)]
    return jax.sharding.reshard(value, NamedSharding(like.mesh, PartitionSpec(*spec)))


def _group_of_each_device(groups: Groups) -> jax.Array:
    pairs = sorted((i, g) for g, group in enumerate(groups) for i in group)
    return jnp.asarray([g for _, g in pairs])


def _packed(collective: Callable[[jax.Array], jax.Array], tree: Tree) -> Tree:
    """Apply `collective` once, to a vector made of all leaves."""
    leaves, structure = jax.tree.flatten(tree)
    dtype = jnp.result_type(*leaves)
    flat = collective(jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves]))
    results, start = [], 0
    for leaf in leaves:
        part = flat[start : start + leaf.size].reshape(leaf.shape)
        part = part if jnp.iscomplexobj(leaf) else part.real
        results.append(part.astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, results)
