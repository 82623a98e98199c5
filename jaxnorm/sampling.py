"""A value near the mean, from a sample: the shift that deviations are taken from.

Whatever the values are, the mean of a share s of them lies within sqrt(1/s - 1)
standard deviations of the mean. With it as the shift of d = x - shift, no more than a
share 1 - s of the sum of d^2 cancels. A fifth or a quarter is enough, at a fraction of
the cost of the mean; a 32nd in half precision, which has fewer digits to lose.

XLA:CPU is fast with slices that are added up as complex numbers (see `sums`). On GPUs
every slice is a kernel, and on TPUs merging axes to cut them copies the whole array. So
there the sample is one slice of one axis, which these compilers read in place. It is a
quarter, as their sums of many terms are rounded a little more. On TPUs that is for half
precision: of float32, XLA adds up all values in the product that makes them.

Where plain jit spreads an array over devices, CPUs pack slices of what each device has,
and others take a slice along an axis that is whole on each.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import dtypes, linear, slices
from jaxnorm.slices import AxisTuple

# The number of evenly spaced places that packed slices are taken from.
PLACES = 4
# A sample is one in so many values: of packed slices, of one slice, in half precision.
PACKED, SLICED, HALF = 5, 4, 32


def approximate_mean(
    x: jax.Array,
    axis: AxisTuple,
    *,
    pack_last_axis: bool = False,
    whole_axis: int | None = None,
) -> tuple[jax.Array, bool]:
    """Return the mean over `axis`, or that of a sample; and whether it is the mean.

    `whole_axis` is one of `axis` that the compiler does not spread over devices.
    """
    last = x.ndim - 1

    def slice_along(axis_to_slice: int | None) -> linear.Function:
        return partial(_mean_of_slice, axis, axis_to_slice)

    cut = slices.cut((x,), axis)
    if cut is None or not _pieces(cut, pack_last_axis)[1]:
        return _mean(axis, x)[0], True
    # Whole rows are read with what is computed of them.
    on_gpu = None if cut.along_last_axis else _axis_to_slice(x, axis)
    on_tpu = whole_on_tpu = None
    if cut.narrow and not cut.along_last_axis:
        on_tpu = _axis_to_slice(x, _untiled_first(axis, last))
        whole_on_tpu = whole_axis
    packed = partial(partial, _mean_of_slices, axis, pack_last_axis)
    # A slice along an axis that is spread would have to be collected.
    if_spread = linear.Forms(slice_along(whole_axis), tpu=slice_along(whole_on_tpu))
    forms = linear.Forms(
        slice_along(None),
        cpu=packed(None, 1),
        gpu=slice_along(on_gpu),
        tpu=slice_along(on_tpu),
        spread=lambda n: if_spread._replace(cpu=packed(whole_axis, n)),
    )
    (near,) = linear.choose(forms, (x,))
    return near, False


def _mean(axis: AxisTuple, x: jax.Array) -> tuple[jax.Array]:
    return (jnp.mean(x, axis, dtypes.statistics_dtype(x.dtype), keepdims=True),)


def _untiled_first(axis: AxisTuple, last: int) -> list[int]:
    """Return the axes, last those of the tiles that a TPU reads.

    They are the last one, and mostly the first or the last but one.
    """
    return sorted(axis, key=lambda a: (a == last, a in (0, last - 1)))


def _axis_to_slice(x: jax.Array, axes: Sequence[int]) -> int | None:
    """Return the first axis of which a slice is at most a third, or the best of them.

    None if it is no less than half of the array.
    """

    def share(axis: int) -> float:
        return _slice_size(x, axis) / x.shape[axis]

    sizes = [a for a in axes if isinstance(x.shape[a], int) and x.shape[a]]
    short = [a for a in sizes if share(a) <= 1 / 3]
    best = short[0] if short else min(sizes, key=share, default=None)
    return None if best is None or share(best) >= 1 / 2 else best


def _slice_size(x: jax.Array, axis: int) -> int:
    return math.ceil(x.shape[axis] / (HALF if dtypes.is_half(x) else SLICED))


def _mean_of_slice(
    axis: AxisTuple, along: int | None, x: jax.Array
) -> tuple[jax.Array]:
    """Return the mean of the first few along one axis; of all, if there is none."""
    if along is not None:
        x = lax.slice_in_dim(x, 0, _slice_size(x, along), axis=along)
    return _mean(axis, x)


def _mean_of_slices(
    axis: AxisTuple,
    pack_last_axis: bool,
    whole_axis: int | None,
    devices: int,
    x: jax.Array,
) -> tuple[jax.Array]:
    """Return the mean of packed slices, in the dtype of statistics.

    Where devices share the array, what is cut may be so short that slices are more than
    a third of it. Then one slice of `whole_axis` is better.
    """
    cut = slices.cut((x,), axis, devices, whole_axis)
    pieces, size = (0, 0) if cut is None else _pieces(cut, pack_last_axis)
    too_much = cut is not None and 3 * PLACES * pieces * size > cut.num_rows
    if cut is None or not size or (devices > 1 and too_much):
        return _mean_of_slice(axis, whole_axis, x)
    (merged,) = cut.merge((x,))

    def rows(place: int, first: int) -> jax.Array:
        start = place * (cut.num_rows // PLACES) + first
        part = lax.slice_in_dim(merged, start, start + size, axis=cut.cut_axis)
        return part.astype(dtypes.statistics_dtype(x.dtype))

    pairs = [
        lax.complex(rows(place, first), rows(place + 1, first))
        for place in range(0, PLACES, 2)
        for first in range(0, pieces * size, size)
    ]
    pair = cut.reduce(slices.tree_sum(pairs))
    rows_added = PLACES * pieces * size * (1 if cut.spread else cut.fold)
    mean = (pair.real + pair.imag) / rows_added
    others = cut.others(axis)
    return (jnp.mean(mean, others, keepdims=True) if others else mean,)


def _pieces(cut: slices.Cut, pack_last_axis: bool) -> tuple[int, int]:
    """Return how many slices to take in each place, and their size.

    A size of 0 says that the mean of all is better.
    """
    place = cut.num_rows // PLACES
    rows = math.ceil(cut.num_rows / (PLACES * (HALF if cut.narrow else PACKED)))
    if cut.along_last_axis:
        rows = max(rows, 8)
        # In half precision a plain sum writes all of x to memory in float32 first.
        if not pack_last_axis or cut.num_rows < rows * (4 if cut.narrow else 16):
            return 0, 0
    most = (slices.NARROW if cut.narrow else slices.WIDE).max_slices // PLACES
    # Single rows need no reduction, but are then fused with what divides by their mean,
    # twice: in half precision 8 of them are 16 conversions, which is too many.
    single = 1 if cut.narrow else most
    pieces = rows if rows <= single else max(1, min(most, rows // slices.WINDOW))
    size = math.ceil(rows / pieces)
    sizes = range(size, min(size + slices.WINDOW, place // pieces + 1))
    return pieces, next((n for n in sizes if slices.is_fast(n)), size)
