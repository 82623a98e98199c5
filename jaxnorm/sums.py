"""Two sums over a large array in one pass, and the transpose of that.

A statistic needs the sums of d and d^2, its gradient those of ct and d * ct. XLA:CPU
makes a kernel of each, reads everything twice, and writes d to memory in between. Here
the array is cut in up to eight slices, which are added up, both sums at once as the two
parts of a complex number: one loop that reads each array once, in its own dtype, and
writes nothing large.

Other platforms fuse two reductions by themselves and take the plain sums. So does an
array that may be sharded along the slices. The choice of platform is made at lowering:
one traced program is right on all of them.

What is summed is given as a function of its operands, so that slices are cut from what
lies in memory, and not from what would have to be written there first.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import axes

# Numbers of slices, the best first. More than eight are past XLA:CPU's limit for one
# fusion, fewer than four save too little.
SLICES = (8, 7, 6, 5, 4)

Axis = tuple[int, ...]
# Arrays of one rank, of size 1 along axes where they do not vary, or None.
Operands = Sequence[Any]


def sum_pair(
    f: Callable[..., tuple[jax.Array, jax.Array]], operands: Operands, axis: Axis
) -> tuple[jax.Array, jax.Array]:
    """Return the sums of the two arrays f(*operands) over `axis`, kept with size 1."""

    def plain(*operands: Any) -> tuple[jax.Array, jax.Array]:
        a, b = f(*operands)
        return jnp.sum(a, axis, keepdims=True), jnp.sum(b, axis, keepdims=True)

    merged = _merge(operands[0], axis)
    if merged is None or merged.reduces_last_axis:
        return plain(*operands)

    def packed(*operands: Any) -> tuple[jax.Array, jax.Array]:
        parts = merged.slices(operands)
        total = jnp.sum(sum(lax.complex(*f(*part)) for part in parts), merged.axis)
        total = jnp.expand_dims(total, axis)
        return total.real, total.imag

    return lax.platform_dependent(*operands, cpu=packed, default=plain)


def scale_and_shift(
    f: Callable[..., jax.Array], operands: Operands, p: jax.Array, q: jax.Array
) -> jax.Array:
    """Return u * p + q for u = f(*operands) and small `p` and `q` of the same rank.

    Linear in p and q: the transpose is a `sum_pair`, of u * ct and of ct.
    """

    def plain(p: jax.Array, q: jax.Array, *operands: Any) -> jax.Array:
        return f(*operands) * p + q

    x = operands[0]
    constant = tuple(a for a in range(x.ndim) if p.shape[a] == q.shape[a] == 1)
    merged = _merge(x, constant)
    if merged is None:
        return plain(p, q, *operands)

    def packed(p: jax.Array, q: jax.Array, *operands: Any) -> jax.Array:
        parts = merged.slices(operands)
        pair = lax.complex(*jnp.broadcast_arrays(*merged.reshape((p, q))))
        pair = jnp.broadcast_to(pair, parts[0][0].shape)
        slices = [plain(pair.real, pair.imag, *part) for part in parts]
        return lax.concatenate(slices, merged.cut).reshape(x.shape)

    return lax.platform_dependent(p, q, *operands, cpu=packed, default=plain)


def approximate_mean(x: jax.Array, axis: Axis) -> jax.Array:
    """Return the mean over `axis`, kept with size 1, or that over a slice of it.

    The latter lies within sqrt(7) standard deviations of the mean, whatever the values
    are: near enough to be the shift of d = x - shift, for little of the cost.
    """
    dtype = axes.statistics_dtype(x.dtype)
    merged = _merge(x, axis)
    if merged is None or merged.reduces_last_axis:
        return jnp.mean(x, axis, dtype, keepdims=True)
    part = merged.slices((x,))[0][0]
    return jnp.expand_dims(jnp.mean(part, merged.axis, dtype), axis)


class _Merged(NamedTuple):
    """How operands are cut: neighbouring axes taken as one, then sliced along `cut`.

    XLA:CPU is slow to reduce several axes at once, and merging them after the fact is
    undone by its simplifier.
    """

    shape: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    axis: Axis
    cut: int
    number: int

    @property
    def reduces_last_axis(self) -> bool:
        """Whether slices run along the last axis.

        XLA:CPU fuses reductions over it with what surrounds them, up to three in a row.
        """
        return self.cut == len(self.groups) - 1

    def reshape(self, operands: Operands) -> list[Any]:
        """Merge the axes of every operand."""

        def merge(v: jax.Array) -> jax.Array:
            # What varies along some axes of a group is repeated along the others.
            shape = [
                self.shape[a] if any(v.shape[b] > 1 for b in group) else 1
                for group in self.groups
                for a in group
            ]
            merged = [math.prod(shape[a] for a in group) for group in self.groups]
            return jnp.broadcast_to(v, shape).reshape(merged)

        return [None if v is None else merge(v) for v in operands]

    def slices(self, operands: Operands) -> list[list[Any]]:
        """Return the operands of each slice."""

        def cut(v: Any, index: int) -> Any:
            if v is None or v.shape[self.cut] == 1:
                return v
            size = v.shape[self.cut] // self.number
            return lax.slice_in_dim(v, index * size, (index + 1) * size, axis=self.cut)

        merged = self.reshape(operands)
        return [[cut(v, index) for v in merged] for index in range(self.number)]


def _merge(x: jax.Array, axis: Axis) -> _Merged | None:
    """Return how to cut `x`, and what is combined with it, along `axis`.

    None if no axis divides, or the arrays may be spread over devices.
    """
    groups: list[tuple[int, ...]] = []
    for a in range(x.ndim):
        if a in axis and a - 1 in axis:
            groups[-1] = (*groups[-1], a)
        else:
            groups.append((a,))
    merged = tuple(i for i, group in enumerate(groups) if group[0] in axis)
    sizes = [math.prod(x.shape[a] for a in group) for group in groups]
    ways = [(n, i) for n in SLICES for i in merged if sizes[i] and sizes[i] % n == 0]
    if not ways or jnp.iscomplexobj(x) or not _on_one_device():
        return None
    number, cut = ways[0]
    return _Merged(x.shape, tuple(groups), merged, cut, number)


def _on_one_device() -> bool:
    """Whether the compiler cannot spread the arrays of this program over devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 if mesh.empty else mesh.are_all_axes_manual
