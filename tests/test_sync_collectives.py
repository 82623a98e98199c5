"""One collective a layer forward and one backward, read from the compiled programs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.collectives import list_collectives
from tests.spreading import (
    AXIS,
    CHECKED,
    DEVICES,
    PMAP,
    UNCHECKED,
    spread,
)
from tests.sync_norms import NORMS

ISSUING = [PMAP, CHECKED, UNCHECKED]
GROUPS = [[0, 4], [1, 5], [2, 6], [3, 7]]
FULL, WEIGHTED = False, True
POOLING = {
    **{name: (*NORMS[name], WEIGHTED) for name in ("batch", "group", "layer", "rms")},
    "batch without weights": (*NORMS["batch"], FULL),
    "batch in groups": (
        partial(NORMS["batch"][0], axis_index_groups=GROUPS),
        0,
        WEIGHTED,
    ),
}
SCALE, BIAS = np.random.default_rng(0).normal(1, 0.5, (2, 4)).astype(np.float32)


def inputs(axis, weighted):
    shape = (16, 3, 4) if axis == 0 else (3, 16, 4)
    x = np.random.default_rng(1).normal(3, 2, shape).astype(np.float32)
    return x, np.abs(x[..., :1]) if weighted else None


def two_layers(norm, x, weights, scale, bias):
    """Return the output, and statistics as each device has them."""
    norm = partial(norm, weights=weights, axis_name=AXIS)
    x, first = norm(x, scale, bias)
    y, second = norm(jnp.sin(x), scale + 1, bias)
    return y, jax.tree.map(lambda leaf: leaf[None], (first, second))


def two_layers_backward(norm, sum_over, x, weights, scale, bias):
    def loss(x, scale, bias):
        y, stats = two_layers(norm, x, weights, scale, bias)
        return jnp.sum(y**2), stats

    (dx, *rest), stats = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return dx, stats, lax.psum(rest, sum_over) if sum_over else rest


def compiled_collectives(mode, f, args, in_axes, out_axes):
    """List the collectives of `f`, spread over the devices."""
    if mode is PMAP:  # compiled by itself: no jit around it
        split = [
            array.reshape(*array.shape[:axis], DEVICES, -1, *array.shape[axis + 1 :])
            if axis is not None and array is not None
            else array
            for array, axis in zip(args, in_axes, strict=True)
        ]
        return list_collectives(jax.pmap(f, AXIS, in_axes=in_axes), *split)
    return list_collectives(jax.jit(spread(mode, f, in_axes, out_axes)), *args)


@pytest.mark.parametrize("mode", ISSUING, ids=str)
@pytest.mark.parametrize("name", POOLING)
def test_one_collective_a_layer_forward_and_one_backward(mode, name):
    norm, axis, weighted = POOLING[name]
    args = *inputs(axis, weighted), SCALE, BIAS
    find = partial(
        compiled_collectives, mode, args=args, in_axes=(axis, axis, None, None)
    )
    forward = partial(two_layers, norm)
    assert find(forward, out_axes=(axis, 0)) == ["all-reduce"] * 2
    sum_over = None if mode.sums_gradients else AXIS
    backward = partial(two_layers_backward, norm, sum_over)
    assert find(backward, out_axes=(axis, 0, None)) == ["all-reduce"] * 4
