"""How arrays are spread over devices, as far as their types say: no communication.

Inside shard_map with check_vma, the type of an array says along which axes of the mesh
it varies (may differ between devices); on a mesh of Explicit axes, how it is sharded.
Arrays that are combined have to agree in that.
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

Tree = TypeVar("Tree")


def vary_like(
    arrays: Sequence[jax.Array], examples: Sequence[jax.Array | None]
) -> list[jax.Array]:
    """Mark arrays of one shape as differing between devices where an example does.

    Inside shard_map with check_vma, a cotangent is summed over devices at the place
    where its value begins to vary. Each array has such a place, and each is a
    collective; for the stacked arrays it is one.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return list(arrays)
    return list(vary(jnp.stack(arrays), *examples))


def vary(tree: Tree, *examples: jax.Array | None) -> Tree:
    """Mark leaves as differing between devices wherever an example does."""
    present = (example for example in examples if example is not None)
    over = frozenset().union(*(_vma(jax.typeof(example)) for example in present))
    return jax.tree.map(partial(_vary_over, over=over), tree)


def cond(
    flag: jax.Array,
    true_fun: Callable[..., Tree],
    false_fun: Callable[..., Tree],
    *args: Any,
) -> Tree:
    """Do what `lax.cond` does, where the types of branches may vary differently.

    Inside shard_map with check_vma, results of both branches are marked as varying
    wherever one of them does. So are the arguments wherever the flag varies: otherwise
    the transpose would communicate inside of a branch that other devices do not take.
    """
    functions = [true_fun, false_fun]
    if jax.sharding.get_abstract_mesh().manual_axes:
        args = vary(args, flag)
        types = [jax.eval_shape(f, *args) for f in functions]
        vma = jax.tree.map(lambda a, b: _vma(a) | _vma(b), *types)
        functions = [
            lambda *a, f=f: jax.tree.map(_vary_over, f(*a), vma) for f in functions
        ]
    return lax.cond(flag, *functions, *args)


def shard_like(value: jax.Array, like: jax.Array) -> jax.Array:
    """Broadcast `value` to `like` and shard it the same way, on Explicit mesh axes."""
    mesh = _explicit_mesh(like, value)
    if mesh is None:
        return value
    return _reshard(jnp.broadcast_to(value, like.shape), mesh, _spec(like))


def as_spread(value: jax.Array, like: jax.Array) -> jax.Array:
    """Return `value` varying and sharded as `like` is."""
    return shard_like(vary(value, like), like)


def on_mesh_of(value: jax.Array, *others: jax.Array) -> jax.Array:
    """Put `value` on the mesh of one of the others, if its axes are Explicit."""
    mesh = _explicit_mesh(*others)
    return value if mesh is None else _reshard(value, mesh, _spec(value))


def shard_like_results(
    values: tuple[jax.Array, ...],
    f: Callable[..., tuple[jax.Array, ...]],
    *args: jax.Array | None,
) -> tuple[jax.Array, ...]:
    """Shard `values` as f(*args) is, of the same shapes, on Explicit mesh axes."""
    mesh = _explicit_mesh(*(arg for arg in args if arg is not None))
    if mesh is None:
        return values
    # (On a mesh of mixed axes, `jax.eval_shape` does not say how results are sharded.)
    types = jax.make_jaxpr(f)(*args).out_avals
    return tuple(map(as_type, values, types))


def as_type(value: jax.Array, aval: Any) -> jax.Array:
    """Shard `value` as a type says, if that is on a mesh of Explicit axes."""
    if not aval.sharding.mesh.explicit_axes:
        return value
    return jax.sharding.reshard(value, aval.sharding)


def shard_axis_like(value: jax.Array, like: jax.Array, axis: int) -> jax.Array:
    """Shard `value` as `like` is along `axis`; other axes stay as they are."""
    mesh = _explicit_mesh(like, value)
    if mesh is None:
        return value
    spec = _spec(value)
    spec[axis] = _spec(like)[axis]
    return _reshard(value, mesh, spec)


def sharding_along(like: jax.Array, axes: tuple[int, ...]) -> NamedSharding | None:
    """Return the sharding of an array with the `axes` of `like`; None is any."""
    mesh = _explicit_mesh(like)
    if mesh is None:
        return None
    return NamedSharding(mesh, PartitionSpec(*(_spec(like)[a] for a in axes)))


def whole_parts(value: jax.Array, axis: int, parts: int) -> jax.Array:
    """Gather `value` along `axis`, unless each shard holds a whole number of `parts`.

    On a mesh of Explicit axes, it can then be reshaped to the parts.
    """
    mesh = _explicit_mesh(value)
    if mesh is None:
        return value
    spec = _spec(value)
    if parts % _count_shards(value, axis):
        spec[axis] = None
    return _reshard(value, mesh, spec)


def on_auto_axes(
    f: Callable[..., Sequence[jax.Array]], out_types: Sequence[Any]
) -> Callable[..., Sequence[jax.Array]]:
    """Return `f` for arguments on Explicit mesh axes, computed as on Auto axes.

    What it returns is sharded as `out_types` say, all on the mesh of the arguments.
    """

    def on_auto(*args: jax.Array) -> Sequence[jax.Array]:
        mesh = _explicit_mesh(*args)
        if mesh is None:
            return f(*args)
        out_sharding = tuple(t.sharding for t in out_types)
        auto_axes = partial(jax.sharding.auto_axes, axes=mesh.explicit_axes)
        return auto_axes(lambda *a: tuple(f(*a)), out_sharding=out_sharding)(*args)

    return on_auto


def is_spread(value: jax.Array) -> bool:
    """Whether `value` is sharded over Explicit axes."""
    return any(_spec(value))


def _vary_over(leaf: jax.Array, over: frozenset[AxisName]) -> jax.Array:
    """Mark `leaf` as differing along these manual axes too."""
    missing = tuple(over - _vma(jax.typeof(leaf)))
    return lax.pcast(leaf, missing, to="varying") if missing else leaf


def _vma(aval: Any) -> frozenset[AxisName]:
    """Return the varying manual axes of a type: devices may differ along them."""
    manual = aval.manual_axis_type
    return frozenset() if manual is None else manual.varying


def _explicit_mesh(*values: jax.Array) -> AbstractMesh | None:
    """Return the mesh that a value is spread over, if its axes are Explicit."""
    meshes = (jax.typeof(value).sharding.mesh for value in values)
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def _spec(value: jax.Array) -> list[Any]:
    """Return the mesh axes that every axis of `value` is spread over."""
    spec = jax.typeof(value).sharding.spec
    return [*spec, *[None] * (value.ndim - len(spec))]


def _count_shards(value: jax.Array, axis: int) -> int:
    """Return the number of shards along `axis`, on a mesh of Explicit axes."""
    mesh = _explicit_mesh(value)
    if mesh is None:
        return 1
    names = _spec(value)[axis]
    names = names if isinstance(names, tuple) else (names,)
    return math.prod(mesh.shape[name] for name in names if name is not None)


def _reshard(value: jax.Array, mesh: AbstractMesh, spec: list[Any]) -> jax.Array:
    return jax.sharding.reshard(value, NamedSharding(mesh, PartitionSpec(*spec)))
