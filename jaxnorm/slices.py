"""How an array is cut into slices along the axes it is summed over, for XLA:CPU.

Slices of equal size are added up elementwise, in one loop. The rows of one slice are
left, and are reduced in a second kernel. The number and the size of slices are chosen
so that both are fast.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Limits(NamedTuple):
    """Numbers and sizes of slices that XLA:CPU is fast with."""

    # Along other axes than the last: of each array in half precision, of all arrays
    # together in float32.
    max_slices: int
    # Along the last axis: of one large array, and of each of two. The size of these
    # slices is a multiple of `multiple`, and if possible no more than `max_size`.
    max_slices_of_one: int
    max_slices_of_two: int
    multiple: int
    max_size: int


# A loop that alternates between more than 16 places of float32 arrays is slow. An array
# of fewer than 32 bits is converted to float32 in memory if one loop would convert it
# in more than 15 places. Along the last axis slices are short, so that their sum stays
# in registers, and a multiple of the vector size; long rows are folded first.
WIDE = Limits(16, max_slices_of_one=64, max_slices_of_two=16, multiple=16, max_size=16)
NARROW = Limits(14, max_slices_of_one=14, max_slices_of_two=14, multiple=8, max_size=64)
MIN_SLICES = 4
# The rows that are left are reduced in windows of at most WINDOW. By itself XLA:CPU
# takes windows of XLA_WINDOW: three times slower if one has to be padded, and a scalar
# loop if there is only one.
WINDOW, XLA_WINDOW = 16, 32
# Addresses a multiple of this apart compete for the same 8 to 12 lines of the
# first-level cache.
PAGE = 4096

AxisTuple = tuple[int, ...]
# Arrays of one rank, of size 1 along axes where they do not vary, or None.
Arrays = Sequence[Any]


class Cut(NamedTuple):
    """How operands of a `shape` are cut: along a group of neighbouring axes, merged.

    They are merged first, since XLA:CPU is slow to reduce complex numbers over several
    axes, and its simplifier undoes a merge that comes later. Other axes are reduced
    separately, afterwards. So is an axis of size `fold`, if the merged one is folded.
    `narrow` says that an operand has fewer than 32 bits an element (half precision, a
    mask), and has to be converted.

    If the array is `spread` over devices, one axis is cut, and folded such that each
    fold is on one device. Folds are left, to be reduced together with other axes.
    """

    shape: tuple[int, ...]
    group: AxisTuple
    fold: int
    num_slices: int
    slice_rows: int
    narrow: bool
    spread: bool = False

    @property
    def merged_axis(self) -> int:
        """The merged axis."""
        return self.group[0]

    @property
    def cut_axis(self) -> int:
        """The axis that is cut: the merged one, or the one behind its folds."""
        return self.merged_axis + (self.fold > 1)

    @property
    def num_rows(self) -> int:
        """The number of rows, which is the size of the axis that is cut."""
        return math.prod(self.shape[a] for a in self.group) // self.fold

    @property
    def overlap(self) -> int:
        """The number of rows that the last slice shares with the one before it."""
        return self.num_slices * self.slice_rows - self.num_rows

    @property
    def along_last_axis(self) -> bool:
        """Whether the rows are single values, not vectors."""
        return self.group[-1] == len(self.shape) - 1

    def others(self, axis: AxisTuple) -> AxisTuple:
        """Return the axes of `axis` that `reduce` leaves to be reduced."""
        return tuple(a for a in axis if self.spread or a not in self.group)

    def merge(self, operands: Arrays) -> list[Any]:
        """Merge the axes of the group in every operand, and fold the merged one."""

        def merge_one(v: jax.Array) -> jax.Array:
            full = any(v.shape[a] > 1 for a in self.group)
            sizes = (self.fold, self.num_rows) if full else (1, 1)
            sizes_kept = sizes if self.fold > 1 else sizes[1:]
            before, after = v.shape[: self.merged_axis], v.shape[self.group[-1] + 1 :]
            return v.reshape(*before, *sizes_kept, *after)

        return [None if v is None else merge_one(v) for v in operands]

    def slices(self, operands: Arrays) -> list[list[Any]]:
        """Return the operands of each slice.

        They are broadcast first, once and not in every slice: each operation costs
        compile time.
        """
        starts = [self.slice_rows * i for i in range(self.num_slices)]
        starts[-1] -= self.overlap
        spans = [(start, start + self.slice_rows) for start in starts]
        merged = self.merge(operands)
        full = merged[0].shape
        sizes = (*full[: self.cut_axis], self.slice_rows, *full[self.cut_axis + 1 :])

        def parts_of(v: Any) -> list[Any]:
            if v is None:
                return [v] * self.num_slices
            if v.shape[self.cut_axis] == 1:
                return [jnp.broadcast_to(v, sizes)] * self.num_slices
            v = jnp.broadcast_to(v, full)
            return [lax.slice_in_dim(v, *span, axis=self.cut_axis) for span in spans]

        return [list(part) for part in zip(*map(parts_of, merged), strict=True)]

    def each_row_once(self, parts: Sequence[jax.Array]) -> list[jax.Array]:
        """Return the terms of each slice, with 0 for rows that are in another one."""
        *parts, last = parts
        if self.overlap:
            rows = lax.broadcasted_iota(jnp.int32, last.shape, self.cut_axis)
            last = jnp.where(rows >= self.overlap, last, 0)
        return [*parts, last]

    def reduce(self, left: jax.Array) -> jax.Array:
        """Sum over the merged axis; the axes of the group are kept with size 1.

        Of what is spread, sum over the axis that is cut; its folds are kept.
        """
        window = [1] * left.ndim
        while (w := _window(left.shape[self.cut_axis])) > 1:
            window[self.cut_axis] = w
            zero = np.zeros((), left.dtype)
            left = lax.reduce_window(left, zero, lax.add, window, window, "VALID")
            if left.shape[self.cut_axis] <= XLA_WINDOW:
                break
        if self.spread and self.fold > 1:
            return jnp.sum(left, self.cut_axis)
        merged = tuple(range(self.merged_axis, self.cut_axis + 1))
        return jnp.expand_dims(jnp.sum(left, merged), self.group)


def cut(
    operands: Arrays, axis: AxisTuple, devices: int = 1, whole_axis: int | None = None
) -> Cut | None:
    """Return how to cut along `axis`; the first operand has the full shape.

    None if that is short. Arrays may be spread over so many devices, evenly, in a way
    that is not known; but `whole_axis` is not spread.
    """
    x = operands[0]
    present = [v for v in operands if v is not None]
    if not axis or jnp.iscomplexobj(x):
        return None
    if not all(isinstance(n, int) and n for n in x.shape):  # empty, or symbolic
        return None
    shapes = [v.shape for v in present]
    group, fold, length = _choose_group(shapes, axis, devices, whole_axis)
    last = group[-1] == x.ndim - 1
    narrow = any(v.dtype.itemsize < 4 for v in present)
    large = [v.dtype.itemsize for v in present if v.size == x.size]
    if last and length >= MIN_SLICES * WIDE.multiple:
        more, number, size = _cut_last_axis(length, narrow, alone=len(large) == 1)
        return Cut(x.shape, group, fold * more, number, size, narrow, devices > 1)
    row = math.prod(x.shape[group[-1] + 1 :]) * min(large)
    most = (
        NARROW.max_slices if narrow else max(MIN_SLICES, WIDE.max_slices // len(large))
    )
    # If single rows were left, with nothing to reduce, XLA would fuse the addition of
    # slices into every user of the sums. (Two or three single values leave nothing.)
    least = 2 if last else MIN_SLICES
    shortest = 1 if last or (devices > 1 and len(axis) > 1) else 2
    best = _cheapest(length, least, most, shortest, row)
    return best and Cut(x.shape, group, fold, *best, narrow, spread=devices > 1)


def _choose_group(
    shapes: list[tuple[int, ...]],
    axis: AxisTuple,
    devices: int,
    whole_axis: int | None,
) -> tuple[AxisTuple, int, int]:
    """Return the axes to cut, how often to fold them, and the length of a fold.

    The longest of several groups, but the last axis only if there is no other. However
    an axis is spread, evenly, over some of the devices, each fold is on one of them.
    """
    sizes = shapes[0]
    groups = _groups(shapes, axis) if devices == 1 else [(a,) for a in axis]

    def fold_and_length(group: AxisTuple) -> tuple[int, int]:
        length = math.prod(sizes[a] for a in group)
        fold = 1 if group == (whole_axis,) else math.gcd(length, devices)
        return fold, length // fold

    inner = [group for group in groups if group[-1] < len(sizes) - 1]
    chosen = max(inner or groups, key=lambda group: fold_and_length(group)[1])
    return chosen, *fold_and_length(chosen)


def _cut_last_axis(length: int, narrow: bool, *, alone: bool) -> tuple[int, int, int]:
    """Return how often to fold a last axis, how many slices to cut, and of what size.

    Where no factor of its length will do, it is not folded and slices are longer.
    """
    limits = NARROW if narrow else WIDE
    most = limits.max_slices_of_one if alone else limits.max_slices_of_two
    longest = length // limits.max_size // MIN_SLICES
    folds = range(math.ceil(length / (most * limits.max_size)), longest + 1)
    fold = next((n for n in folds if length % n == 0), 1)
    size = limits.multiple * math.ceil(length / fold / limits.multiple / most)
    return fold, math.ceil(length / fold / size), size


@cache  # asked once where a form is traced, and again where it is lowered
def _cheapest(
    length: int, least: int, most: int, shortest: int, row: int
) -> tuple[int, int] | None:
    """Return how many slices to cut, and of what size; None if `length` is too short.

    Slices have `shortest` rows or more; `row` is the size of a row in bytes. The last
    slice may overlap the one before.
    """

    def cost(slices: tuple[int, int]) -> float:
        """Estimate the time beyond that of adding up `length` rows, in rows."""
        number, size = slices
        again = number * size - length
        left = 2 * size * (1 + 2 / _window(size))
        # Slices that begin at the same place of a page share the lines of a cache.
        sharing = number * math.gcd(size * row, PAGE) / PAGE
        return again + left + length * max(0, sharing - 4) / 32

    exact = {max(shortest, math.ceil(length / n)) for n in range(least, most + 1)}
    sizes = {size + more for size in exact for more in range(WINDOW + 1)}
    every = [(math.ceil(length / size), size) for size in sorted(sizes)]
    return min((s for s in every if s[0] >= least), key=cost, default=None)


def tree_sum(parts: Sequence[jax.Array]) -> jax.Array:
    """Add up in pairs: the errors of 16 terms are those of four additions."""
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = [*pairs, *parts[2 * len(pairs) :]]
    return parts[0]


def is_fast(size: int) -> bool:
    """Whether `size` rows can be reduced in windows that are not small."""
    return size <= WINDOW or _window(size) >= WINDOW // 2


def _window(size: int) -> int:
    """Return the largest window that `size` rows can be reduced in, without a rest."""
    most = min(WINDOW, size // 2)
    return next((w for w in range(most, 1, -1) if size % w == 0), 1)


def _groups(shapes: list[tuple[int, ...]], axis: AxisTuple) -> list[AxisTuple]:
    """Group neighbouring axes along which the same arrays vary: they can be merged."""
    groups: list[AxisTuple] = []
    for a in axis:
        alike = all((s[a] > 1) == (s[a - 1] > 1) for s in shapes) if a else False
        if groups and groups[-1][-1] == a - 1 and alike:
            groups[-1] = (*groups[-1], a)
        else:
            groups.append((a,))
    return groups
