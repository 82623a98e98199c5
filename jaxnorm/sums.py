"""Sums over a large array, and the transposes of what broadcasts over one, in one pass.

A statistic needs the sums of d and d^2, its gradient those of ct and d * ct. XLA:CPU
makes a kernel of each, reads everything twice, and writes d to memory in between. Here
the array is cut in slices, which are added up, both sums at once as the two parts of a
complex number: one loop that reads each array once, in its own dtype, and writes
nothing large.

Other platforms fuse two reductions by themselves and take the plain sums. So does an
array that may be sharded along the slices. The choice of platform is made at lowering:
one traced program is right on all of them.

What is summed is given as a function of its operands, so that slices are cut from what
lies in memory, and not from what would have to be written there first.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import axes, devices

# The number of slices: as many as leave ROWS rows to add up (XLA:CPU vectorizes that
# sum from 33 rows on), but at most MOST, or MOST_HALF of a half-precision array: XLA
# writes an array to memory in float32 if one loop would convert it in more places.
ROWS, MOST, MOST_HALF = 33, 16, 14
# In a transpose, where slices are taken of a product, that limit holds for all dtypes.
MOST_PILED = 15
# Numbers of slices for arrays too short for that, the best first. (In float32 the very
# short ones are cut in single rows, and nothing is left to add up; but not in columns.)
FEW = (8, 7, 6, 5, 4)

Axis = tuple[int, ...]
# Arrays of one rank, of size 1 along axes where they do not vary, or None.
Operands = Sequence[Any]
Pair = tuple[jax.Array, jax.Array]


def sum_pair(
    f: Callable[..., Pair],
    operands: Operands,
    axis: Axis,
    *,
    pack_last_axis: bool = False,
) -> Pair:
    """Return the sums of the two arrays f(*operands) over `axis`, kept with size 1.

    Sums along the last axis are left plain unless `pack_last_axis`: XLA:CPU fuses up
    to three of them in a row with what surrounds them, if only that uses them.
    """

    def plain(*operands: Any) -> Pair:
        a, b = f(*operands)
        return jnp.sum(a, axis, keepdims=True), jnp.sum(b, axis, keepdims=True)

    cut = _cut(operands, axis)
    if cut is None or (cut.along_last_axis and not pack_last_axis):
        return plain(*operands)

    def packed(*operands: Any) -> Pair:
        *parts, rest = cut.slices(operands)
        total = jnp.sum(sum(lax.complex(*f(*part)) for part in parts), cut.start)
        if cut.has_rest:
            total += jnp.sum(lax.complex(*f(*rest)), cut.start)
        total = jnp.expand_dims(total, cut.group)
        others = cut.others(axis)
        a, b = total.real, total.imag
        return jnp.sum(a, others, keepdims=True), jnp.sum(b, others, keepdims=True)

    return lax.platform_dependent(*operands, cpu=packed, default=plain)


def combine(
    f: Callable[..., tuple[jax.Array, jax.Array | None]],
    operands: Operands,
    p: jax.Array,
    q: jax.Array,
) -> jax.Array:
    """Return u * p + v * q for (u, v) = f(*operands); v None is 1.

    Linear in the small `p` and `q`, of the rank of u: the transpose is a `sum_pair`, of
    u * ct and v * ct.
    """

    def plain(p: jax.Array, q: jax.Array, *operands: Any) -> jax.Array:
        u, v = f(*operands)
        return u * p + (q if v is None else v * q)

    p, q = devices.vary_like(operands, *jnp.broadcast_arrays(p, q))
    constant = tuple(a for a in range(p.ndim) if p.shape[a] == 1)
    cut = _cut(operands, constant)
    number = 0 if cut is None else _divisor(cut.length, min(cut.number, MOST_PILED), 3)
    if cut is None or not number:
        return plain(p, q, *operands)

    def packed(p: jax.Array, q: jax.Array, *operands: Any) -> jax.Array:
        # What is transposed to a sum over the other axes stays apart, and real.
        shape = [
            cut.shape[a] if a in cut.others(constant) else n
            for a, n in enumerate(p.shape)
        ]
        small = lax.complex(jnp.broadcast_to(p, shape), jnp.broadcast_to(q, shape))
        pile = partial(cut.pile, number=number)
        (small,), large = pile((small,)), pile(operands)
        # One slice, repeated: XLA makes a broadcast of that. Its transpose adds up
        # slices of what it is multiplied by, and then reduces them.
        shape = [*large[0].shape]
        shape[cut.start] = 1
        every = [jnp.broadcast_to(small, shape)] * number
        pair = lax.concatenate(every, cut.start)
        return plain(pair.real, pair.imag, *large).reshape(cut.shape)

    return lax.platform_dependent(p, q, *operands, cpu=packed, default=plain)


def approximate_mean(
    x: jax.Array, axis: Axis, *, pack_last_axis: bool = False
) -> tuple[jax.Array, bool]:
    """Return the mean over `axis`, kept with size 1, or over a part; whether over all.

    Of many rows it takes at least 1/32, in four places. Their mean lies within sqrt(31)
    standard deviations of that of all, whatever the values are: near enough to be the
    shift of d = x - shift, for little of the cost.
    """
    dtype = axes.statistics_dtype(x.dtype)
    cut = _cut((x,), axis)
    along_last = cut is not None and cut.along_last_axis
    least = 8 if along_last else ROWS
    # In half precision a plain sum writes all of x to memory in float32 first.
    many = least * (4 if x.dtype.itemsize < 4 else 16)
    if cut is None or cut.length < many or (along_last and not pack_last_axis):
        return jnp.mean(x, axis, dtype, keepdims=True), True
    (merged,) = cut.merge((x,))
    size, step = max(least, cut.length // 128), cut.length // 4

    def part(index: int) -> jax.Array:
        start = index * step
        rows = lax.slice_in_dim(merged, start, start + size, axis=cut.start)
        return rows.astype(dtype)

    pairs = lax.complex(part(0), part(1)) + lax.complex(part(2), part(3))
    total = jnp.expand_dims(jnp.sum(pairs, cut.start), cut.group)
    mean = (total.real + total.imag) / (4 * size)
    return jnp.mean(mean, cut.others(axis), keepdims=True), False


def hold(x: jax.Array) -> jax.Array:
    """Return a finite `x` of the size of the features, computed once.

    XLA:CPU computes a small value anew for each element of a large array it is combined
    with, but never a quotient. This one is `x` exactly, which XLA may not assume.
    (What has size 1 along the last axis is computed once per row anyway.)
    """
    if x.shape[-1] == 1 or jnp.iscomplexobj(x):
        return x

    def solve(_: Any, x: jax.Array) -> jax.Array:
        return lax.platform_dependent(
            x, cpu=lambda x: x / (1 + 0 * x), default=lambda x: x
        )

    return lax.custom_linear_solve(lambda x: x, x, solve, symmetric=True)


class _Cut(NamedTuple):
    """How operands of a `shape` are cut: along neighbouring axes, merged to one.

    XLA:CPU is slow to reduce complex numbers over several axes at once, and merging
    them after the fact is undone by its simplifier. Axes outside of the group are
    reduced on their own, afterwards.
    """

    shape: tuple[int, ...]
    group: Axis
    number: int

    @property
    def start(self) -> int:
        return self.group[0]

    @property
    def length(self) -> int:
        return math.prod(self.shape[a] for a in self.group)

    @property
    def has_rest(self) -> bool:
        return self.length % self.number > 0

    @property
    def along_last_axis(self) -> bool:
        return self.group[-1] == len(self.shape) - 1

    def others(self, axis: Axis) -> Axis:
        return tuple(a for a in axis if a not in self.group)

    def merge(self, operands: Operands) -> list[Any]:
        """Merge the axes of the group in every operand."""

        def merge(v: jax.Array) -> jax.Array:
            length = math.prod(v.shape[a] for a in self.group)
            before, after = v.shape[: self.start], v.shape[self.group[-1] + 1 :]
            return v.reshape(*before, length, *after)

        return [None if v is None else merge(v) for v in operands]

    def pile(self, operands: Operands, number: int) -> list[Any]:
        """Split the merged axis of every operand in two, (number, length / number)."""

        def split(v: Any) -> Any:
            if v is None or v.shape[self.start] == 1:
                return v if v is None else jnp.expand_dims(v, self.start)
            before, after = v.shape[: self.start], v.shape[self.start + 1 :]
            return v.reshape(*before, number, -1, *after)

        return [split(v) for v in self.merge(operands)]

    def slices(self, operands: Operands) -> list[list[Any]]:
        """Return the operands of each slice, then those of the rest."""
        size = self.length // self.number
        ends = [size * i for i in range(self.number + 1)] + [self.length]

        def cut(v: Any, start: int, end: int) -> Any:
            if v is None or v.shape[self.start] == 1:
                return v
            return lax.slice_in_dim(v, start, end, axis=self.start)

        merged = self.merge(operands)
        return [
            [cut(v, start, end) for v in merged]
            for start, end in itertools.pairwise(ends)
        ]


def _cut(operands: Operands, axis: Axis) -> _Cut | None:
    """Return how to cut along `axis`; the first operand has the full shape.

    None if that is short, or the arrays may be spread over devices.
    """
    x = operands[0]
    if not x.size or jnp.iscomplexobj(x) or not axis or not _on_one_device():
        return None
    present = [v for v in operands if v is not None]
    groups = _groups([v.shape for v in present], axis)
    lengths = [math.prod(x.shape[a] for a in group) for group in groups]
    # Of several groups the longest, and the last axis only where there is no other.
    inner = [i for i, group in enumerate(groups) if group[-1] < x.ndim - 1]
    chosen = max(inner or range(len(groups)), key=lengths.__getitem__)
    half = any(v.dtype.itemsize < 4 for v in present)
    length = lengths[chosen]
    number = min(length // ROWS, MOST_HALF if half else MOST)
    if number >= 4:
        # Better a few less than a rest.
        number = _divisor(length, number, above=3 * number // 4) or number
    elif half or not inner or not min(FEW) <= length < 2 * ROWS:
        few = (n for n in FEW if n <= length)
        number = min(few, key=lambda n: length % n, default=0)
    else:
        number = length
    return _Cut(x.shape, groups[chosen], number) if number else None


def _divisor(length: int, most: int, above: int) -> int:
    """Return the largest divisor up to `most`, 0 if it is not larger than `above`."""
    return next((n for n in range(most, above, -1) if length % n == 0), 0)


def _groups(shapes: list[tuple[int, ...]], axis: Axis) -> list[Axis]:
    """Group neighbouring axes along which the same arrays vary: they can be merged."""
    groups: list[Axis] = []
    for a in axis:
        alike = all((s[a] > 1) == (s[a - 1] > 1) for s in shapes) if a else False
        if groups and groups[-1][-1] == a - 1 and alike:
            groups[-1] = (*groups[-1], a)
        else:
            groups.append((a,))
    return groups


def _on_one_device() -> bool:
    """Whether the compiler cannot spread the arrays of this program over devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 if mesh.empty else mesh.are_all_axes_manual
