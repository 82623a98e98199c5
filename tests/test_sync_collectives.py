"""One collective a layer forward and one backward, read from the compiled programs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnorm import shifted
from tests.collectives import list_collectives
from tests.spreading import (
    AUTO,
    AXIS,
    CHECKED,
    EXPLICIT,
    PMAP,
    UNCHECKED,
    make_mesh,
    place,
    split,
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


def two_layers(norm, x, weights, scale, bias, axis_name=AXIS):
    """Return the output, and statistics as each device has them."""
    norm = partial(norm, weights=weights, axis_name=axis_name)
    x, first = norm(x, scale, bias)
    y, second = norm(jnp.sin(x), scale + 1, bias)
    return y, jax.tree.map(lambda leaf: leaf[None], (first, second))


def two_layers_backward(norm, sum_over, x, weights, scale, bias, axis_name=AXIS):
    def loss(x, scale, bias):
        y, stats = two_layers(norm, x, weights, scale, bias, axis_name)
        return jnp.sum(y**2), stats

    (dx, *rest), stats = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    return dx, stats, lax.psum(rest, sum_over) if sum_over else rest


def compiled_collectives(mode, f, args, in_axes, out_axes):
    """List the collectives of `f`, spread over the devices."""
    if mode is PMAP:  # compiled by itself: no jit around it
        mapped = jax.pmap(f, AXIS, in_axes=in_axes)
        return list_collectives(mapped, *split(args, in_axes))
    return list_collectives(jax.jit(spread(mode, f, in_axes, out_axes)), *args)


@pytest.mark.parametrize("mode", ISSUING, ids=str)
def test_moments_that_do_not_move_are_not_exchanged(mode):
    """Gradients of scale and bias alone need the output, and no further collective."""

    def gradients(x, scale, bias):
        def loss(scale, bias):
            y, _ = NORMS["batch"][0](x, scale, bias, axis_name=AXIS)
            return jnp.sum(y**3)

        # Scale and bias vary here, so that JAX sums no gradients over devices.
        scale, bias = scale + 0 * jnp.sum(x), bias + 0 * jnp.sum(x)
        return jax.tree.map(lambda v: v[None], jax.grad(loss, (0, 1))(scale, bias))

    args = inputs(0, FULL)[0], SCALE, BIAS
    found = compiled_collectives(mode, gradients, args, (0, None, None), (0, 0))
    assert found == ["all-reduce"]


@pytest.mark.parametrize("mode", ISSUING, ids=str)
def test_many_devices_take_two_collectives(mode, monkeypatch):
    monkeypatch.setattr(shifted, "FEW_DEVICES", 7)
    norm, axis, weighted = POOLING["batch"]
    args = *inputs(axis, weighted), SCALE, BIAS
    spread_out = partial(compiled_collectives, mode, in_axes=(axis, axis, None, None))
    jax.clear_caches()
    found = spread_out(partial(two_layers, norm), args=args, out_axes=(axis, 0))
    jax.clear_caches()
    assert found == ["all-reduce"] * 4


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


@pytest.mark.parametrize("weighted", [FULL, WEIGHTED])
@pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)
def test_one_collective_each_way_under_plain_jit(mode, weighted):
    """Parts of the rows, one a device, are measured from a shift of their own."""
    norm, axis, _ = POOLING["batch"]
    args = place(mode, (*inputs(axis, weighted), SCALE, BIAS), (axis, axis, None, None))
    forward = jax.jit(partial(two_layers, norm, axis_name=None))
    assert list_collectives(forward, *args) == ["all-reduce"] * 2
    backward = jax.jit(partial(two_layers_backward, norm, None, axis_name=None))
    assert list_collectives(backward, *args) == ["all-reduce"] * 4


@pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)
@pytest.mark.parametrize(
    ("spec", "number"), [(P("data"), 1), (P(("data", "model")), 1), (P(), 0)], ids=str
)
def test_one_collective_over_a_part_of_the_mesh(mode, spec, number):
    mesh = make_mesh(mode, {"data": 4, "model": 2})
    x = jax.device_put(inputs(0, FULL)[0], NamedSharding(mesh, spec))
    norm = jax.jit(lambda x: NORMS["batch"][0](x, SCALE, BIAS))
    assert list_collectives(norm, x) == ["all-reduce"] * number
