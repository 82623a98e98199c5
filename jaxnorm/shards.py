"""Moments of rows that the compiler spreads over devices, with one collective.

In shard_map every device measures its own rows, from a shift of its own, and moments
are all that is exchanged. Under plain jit there is one program for the rows of all
devices, and a shift for all of them would be a collective of its own, before that of
the sums. So the rows are measured in as many parts as there are devices, each from its
own shift, and merged. (Every shard is then one part or several, since meshes divide the
number of devices.) That number is known at lowering. On a mesh of Explicit axes, types
say already what the shards are.
"""

from collections.abc import Callable
from functools import partial

import jax

from jaxnorm import devices, linear, sharding, shifted, sums
from jaxnorm.reduction import Reduction
from jaxnorm.shifted import ShiftedMoments

Measure = Callable[[jax.Array, jax.Array | None, Reduction], ShiftedMoments]


def measure_shards(
    measure: Measure, x: jax.Array, weights: jax.Array | None, over: Reduction
) -> ShiftedMoments:
    """Return measure(x, weights, over), or that of parts of the first axis, merged.

    The first axis is the one that batches are spread along. Where it is not reduced, or
    there is no shift, parts gain nothing.
    """
    if 0 not in over.axis or not over.centered or over.channel_groups is not None:
        return measure(x, weights, over)
    if not isinstance(x.shape[0], int):  # symbolic, as in jax.export
        return measure(x, weights, over)
    if sharding.is_explicit(x, weights):
        shards = sharding.count_shards(x, 0)
        return _measure_parts(measure, over, shards, x, weights)

    def whole(x: jax.Array, weights: jax.Array | None) -> ShiftedMoments:
        return measure(x, weights, over)

    def in_parts(number: int) -> linear.Function:
        return partial(_measure_parts, measure, over, number)

    forms = linear.Forms(whole, whole, in_parts)
    return ShiftedMoments(*linear.choose(forms, (x, weights)))


def _measure_parts(
    measure: Measure,
    over: Reduction,
    number: int,
    x: jax.Array,
    weights: jax.Array | None,
) -> ShiftedMoments:
    if not 1 < number <= shifted.FEW_DEVICES or x.shape[0] % number:
        return measure(x, weights, over)
    within = over._replace(axis=tuple(axis + 1 for axis in over.axis))
    if weights is not None:
        weights = sharding.split(weights, number)
    parts = measure(sharding.split(x, number), weights, within)
    merged = shifted.merge(devices.collect(parts, number))
    return merged._replace(shift=sums.hold(merged.shift))
