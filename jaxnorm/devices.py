"""Exchange small statistics between devices: the only collectives of this package.

`gather` and `sum_over_devices` issue one all-reduce, whatever they are given (of arrays
that are spread over further, Explicit axes, one each).
`lax.psum` is the one collective that means the same, and has the same type, under pmap,
vmap with an axis name, and shard_map with and without check_vma; its transpose is one
all-reduce as well. `lax.all_gather` gives a varying result under check_vma, and neither
takes axis_index_groups everywhere: psum does not under vmap, nor in shard_map with
check_vma. So gathering is summing a table in which every device fills its own row, and
groups are rows of a table too. Statistics are a few values per feature: of few devices
(see `shifted.FEW_DEVICES`) the zeros cost less than a second collective would.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

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
    present = (example for example in examples if example is not None)
    over = frozenset().union(*(_varies(jax.typeof(example)) for example in present))
    return jax.tree.map(partial(_vary_over, over=over), tree)


def vary_alike(
    functions: tuple[Callable[..., Tree], Callable[..., Tree]], *args: Any
) -> list[Callable[..., Tree]]:
    """Return two functions of `args` such that their results differ alike.

    They are then of one type inside shard_map with check_vma, as `lax.cond` wants it.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return list(functions)
    types = [jax.eval_shape(f, *args) for f in functions]
    wanted = jax.tree.map(lambda a, b: _varies(a) | _varies(b), *types)
    return [lambda *a, f=f: jax.tree.map(_vary_over, f(*a), wanted) for f in functions]


def shard_like(value: jax.Array, like: jax.Array) -> jax.Array:
    """Spread `value`, which broadcasts to `like`, over devices as that is.

    On a mesh of Explicit axes, arrays that are combined must agree in that.
    """
    mesh = _explicit_mesh(like, value)
    if mesh is None:
        return value
    return _reshard(jnp.broadcast_to(value, like.shape), mesh, _spec(like))


def shard_axis_like(value: jax.Array, like: jax.Array, axis: int) -> jax.Array:
    """Spread `value` over devices as `like` is along `axis`, and as it is elsewhere."""
    mesh = _explicit_mesh(like, value)
    if mesh is None:
        return value
    spec = _spec(value)
    spec[axis] = _spec(like)[axis]
    return _reshard(value, mesh, spec)


def sharding_along(like: jax.Array, axes: tuple[int, ...]) -> NamedSharding | None:
    """Return how what has the `axes` of `like` is to be spread; None is any way."""
    mesh = _explicit_mesh(like)
    if mesh is None:
        return None
    return NamedSharding(mesh, PartitionSpec(*(_spec(like)[a] for a in axes)))


def whole_parts(value: jax.Array, axis: int, parts: int) -> jax.Array:
    """Gather `value` along `axis`, unless each shard of it holds whole ones of `parts`.

    On a mesh of Explicit axes it can then be reshaped to the parts.
    """
    mesh = _explicit_mesh(value)
    if mesh is None:
        return value
    spec = _spec(value)
    names = spec[axis] if isinstance(spec[axis], tuple) else (spec[axis],)
    shards = math.prod(mesh.shape[name] for name in names if name is not None)
    if parts % shards:
        spec[axis] = None
    return _reshard(value, mesh, spec)


def _vary_over(leaf: jax.Array, over: frozenset[AxisName]) -> jax.Array:
    """Mark `leaf` as differing along these manual axes too."""
    missing = tuple(over - _varies(jax.typeof(leaf)))
    return lax.pcast(leaf, missing, to="varying") if missing else leaf


def _varies(kind: Any) -> frozenset[AxisName]:
    """Return the manual axes along which what is of this type may differ."""
    manual = kind.manual_axis_type
    return frozenset() if manual is None else manual.varying


def _explicit_mesh(*values: jax.Array) -> AbstractMesh | None:
    """Return the mesh that a value is spread over, if its axes are Explicit."""
    meshes = (jax.typeof(value).sharding.mesh for value in values)
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def _spec(value: jax.Array) -> list[Any]:
    """Return the mesh axes that every axis of `value` is spread over."""
    spec = jax.typeof(value).sharding.spec
    return [*spec, *[None] * (value.ndim - len(spec))]


def _reshard(value: jax.Array, mesh: AbstractMesh, spec: list[Any]) -> jax.Array:
    return jax.sharding.reshard(value, NamedSharding(mesh, PartitionSpec(*spec)))


def _group_of_each_device(groups: Groups) -> jax.Array:
    pairs = sorted((i, g) for g, group in enumerate(groups) for i in group)
    return jnp.asarray([g for _, g in pairs])


def _packed(collective: Callable[[jax.Array], jax.Array], tree: Tree) -> Tree:
    """Apply `collective` once, to a vector made of all leaves; or to each of them."""
    leaves, structure = jax.tree.flatten(tree)
    if any(any(_spec(leaf)) for leaf in leaves):  # spread over further, Explicit axes
        return jax.tree.map(collective, tree)
    dtype = jnp.result_type(*leaves)
    flat = collective(jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves]))
    results, start = [], 0
    for leaf in leaves:
        part = flat[start : start + leaf.size].reshape(leaf.shape)
        part = part if jnp.iscomplexobj(leaf) else part.real
        results.append(part.astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, results)
