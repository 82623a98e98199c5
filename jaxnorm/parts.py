"""Moments that are measured in parts, each from a shift of its own, and merged.

Two kinds of programs gain by it:

- Where plain jit spreads rows over devices, a shift for all of them would be a
  collective of its own, before that of the sums. (In shard_map every device measures
  its own rows anyway.) With a part, or several, on each device there is one. Meshes
  divide the number of devices, which is known at lowering.
- XLA:GPU makes one kernel of a sum over up to 4096 rows, with a thread for every 32 of
  them, and writes x - shift to memory before. Of short parts it makes many threads,
  which read x in place.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxnorm import devices, linear, shifted, sums
from jaxnorm.reduction import Reduction
from jaxnorm.shifted import ShiftedMoments
from jaxnorm.weighting import weighs_the_same_everywhere

Tree = TypeVar("Tree")
Measure = Callable[[jax.Array, jax.Array | None, Reduction], ShiftedMoments]

# XLA:GPU splits longer sums by itself.
MAX_UNSPLIT_ROWS = 4096
# The number of rows in a part on a GPU. Of more than 128 XLA does not always read x in
# place, of more than 256 rarely; of fewer than 24 the parts' moments are much to write.
MIN_ROWS, GOOD_ROWS, MAX_ROWS = 24, 128, 256


def measure_in_parts(
    measure: Measure, x: jax.Array, weights: jax.Array | None, over: Reduction
) -> ShiftedMoments:
    """Return measure(x, weights, over), or that of parts, merged.

    Batches are spread along the first axis. Where it is not reduced, parts of shards
    gain nothing; nor does anything without a shift.
    """
    if not over.axis or not over.centered:
        return measure(x, weights, over)
    known = isinstance(x.shape[0], int)  # and not symbolic, as in jax.export
    batch = over.axis[0] == 0 and over.channel_groups is None and known
    if not batch and _split_on_gpu(x, over) is None:
        return measure(x, weights, over)

    def forms(number: int) -> linear.Forms:
        shards = partial(_measure_shards, over=over, shards=number if batch else 1)
        on_gpu = partial(_measure_on_gpu, measure, num_devices=number)
        return linear.Forms(partial(shards, measure), gpu=partial(shards, on_gpu))

    each = forms(1)._replace(spread=forms)
    return ShiftedMoments(*linear.choose(each, (x, weights)))


def _measure_shards(
    measure: Measure,
    x: jax.Array,
    weights: jax.Array | None,
    over: Reduction,
    shards: int,
) -> ShiftedMoments:
    """Measure so many parts of the first axis, which may be spread."""
    if shards > shifted.FEW_DEVICES:
        return measure(x, weights, over)
    return _measure_parts(measure, x, weights, over, 0, shards, devices.collect)


def _measure_on_gpu(
    measure: Measure,
    x: jax.Array,
    weights: jax.Array | None,
    over: Reduction,
    num_devices: int,
) -> ShiftedMoments:
    """Measure parts of an axis, as long as a GPU is fast with."""
    split = _split_on_gpu(x, over, num_devices)
    if split is None:
        return measure(x, weights, over)
    return _measure_parts(measure, x, weights, over, *split, _repeat)


def _measure_parts(
    measure: Measure,
    x: jax.Array,
    weights: jax.Array | None,
    over: Reduction,
    axis: int,
    number: int,
    collect: Callable[[Any, int], Any],
) -> ShiftedMoments:
    """Measure so many parts of an axis, if they are equal, and merge them."""
    if number == 1 or x.shape[axis] % number:
        return measure(x, weights, over)

    def split(v: jax.Array) -> jax.Array:  # one of size 1 along the axis is a part
        before, size, after = v.shape[:axis], v.shape[axis], v.shape[axis + 1 :]
        parts = min(number, size)
        return v.reshape(*before, parts, size // parts, *after)

    weights_of_parts = None if weights is None else split(weights)
    parts = measure(split(x), weights_of_parts, _within(over, axis))
    parts = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, 0), parts)
    if weighs_the_same_everywhere(x, weights):
        merged = shifted.merge_alike(parts.count[0], *collect(parts[1:], number))
    else:
        merged = shifted.merge(collect(parts, number))
    return merged._replace(shift=sums.hold(merged.shift))


def _within(over: Reduction, split: int) -> Reduction:
    """Return what is reduced of an array of which an axis is split."""
    axis = tuple(a + (a >= split) for a in over.axis)
    groups = over.channel_groups
    if groups is not None:
        groups = groups[0] + (groups[0] > split), groups[1]
    return over._replace(axis=axis, whole_axis=split + 1, channel_groups=groups)


def _repeat(tree: Tree, number: int) -> Tree:
    """Give every part its own of what all have in common."""

    def repeat(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf, (number, *leaf.shape[1:]))

    return jax.tree.map(repeat, tree)


def _split_on_gpu(
    x: jax.Array, over: Reduction, num_devices: int = 1
) -> tuple[int, int] | None:
    """Return which axis a GPU gains by splitting, and in how many parts.

    Of what several devices share, the first axis is not split. Another one may be
    spread, evenly: its shards have whole parts.
    """
    sizes = [x.shape[a] for a in over.axis]
    if over.axis[-1] == x.ndim - 1 or not all(isinstance(n, int) for n in sizes):
        return None
    rows = math.prod(sizes)
    if not GOOD_ROWS <= rows <= MAX_UNSPLIT_ROWS:
        return None
    numbers = range(max(2, math.ceil(rows / MAX_ROWS)), rows // MIN_ROWS + 1)
    equal = [
        (a, n)
        for a in over.axis
        if a > 0 or num_devices == 1
        for n in numbers
        if x.shape[a] % n == 0 and n % math.gcd(x.shape[a], num_devices) == 0
    ]
    good = [(a, n) for a, n in equal if rows // n <= GOOD_ROWS]
    return min(good or equal, key=lambda split: split[1], default=None)
