"""What is wrong with device axes is one error, with the same text in every mode."""

from functools import partial

import jax
import numpy as np
import pytest

import jaxnorm as jn
from tests.spreading import (
    AUTO,
    AXIS,
    EXPLICIT,
    MAPPED,
    MODES,
    make_mesh,
    place,
    spread,
)

X = np.random.default_rng(0).normal(size=(16, 3, 8)).astype(np.float32)
STATS = jn.init_stats(8)


def message_in(mode, f):
    """Return the text of the error that `f` raises on a device's part of X."""
    run = spread(mode, f, in_axes=(0,), out_axes=0)
    with pytest.raises((TypeError, ValueError)) as error:
        jax.jit(run)(*place(mode, (X,), (0,)))
    return str(error.value)


def batch(x, training=True, **kwargs):
    return jn.batch_norm(x, STATS, training=training, **kwargs)[0]


def pool(x, **kwargs):
    return jn.pool_moments(jn.compute_moments(x, 0), **kwargs)


def merge(x, **kwargs):
    del x
    return jn.merge_stats(STATS, **kwargs)


POOLING = {
    "batch_norm": batch,
    "batch_norm in evaluation": partial(batch, training=False),
    "layer_norm": jn.layer_norm,
    "rms_norm": jn.rms_norm,
    "group_norm": partial(jn.group_norm, num_groups=2),
    "instance_norm": jn.instance_norm,
    "compute_moments": partial(jn.compute_moments, axis=0),
    "pool_moments": pool,
    "merge_stats": merge,
}


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("axis_name", ["model", (AXIS, "model")], ids=str)
def test_an_axis_that_is_not_bound(name, axis_name):
    f = partial(POOLING[name], axis_name=axis_name)
    expected = (
        f"{name.split()[0]}: axis_name must be bound by pmap, vmap or shard_map around "
        f"the call. Received axis_name={axis_name!r}, which is not; bind it there, or "
        "leave axis_name out: under plain jit on sharded arrays statistics are global "
        "without it."
    )
    for mode in MODES:
        assert message_in(mode, f) == expected
    for outside in (f, partial(jax.eval_shape, f)):  # as when a model is initialized
        with pytest.raises(ValueError) as error:
            outside(X)
        assert str(error.value) == expected


def test_an_axis_of_a_mesh_is_not_bound_by_the_mesh_alone():
    """Under jit the mesh is known, and `axis_name` still means nothing."""
    for mode in (AUTO, EXPLICIT):
        with jax.set_mesh(make_mesh(mode)):
            message = message_in(mode, partial(batch, axis_name=AXIS))
        assert "axis_name must be bound by pmap, vmap or shard_map" in message


BAD_GROUPS = {
    "unequal": [[0, 1, 2], [3, 4, 5, 6, 7]],
    "not all devices": [[0, 1], [2, 3], [4, 5]],
    "a device twice": [[0, 1, 2, 3], [3, 4, 5, 6]],
    "a device too many": [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
    "negative": [[-1, 0, 1, 2], [3, 4, 5, 6]],
    "none": [],
}


@pytest.mark.parametrize("groups", BAD_GROUPS.values(), ids=BAD_GROUPS)
@pytest.mark.parametrize("name", ["batch_norm", "compute_moments", "pool_moments"])
def test_groups_that_do_not_divide_the_devices(name, groups):
    f = partial(POOLING[name], axis_name=AXIS, axis_index_groups=groups)
    expected = (
        f"{name}: axis_index_groups must be groups of equal size that hold every index "
        f"of axis 'data' (size 8) once. Received {groups}; name every index "
        "in one group, and as many in each."
    )
    for mode in MAPPED:
        assert message_in(mode, f) == expected


def test_groups_without_an_axis():
    f = partial(batch, axis_index_groups=[[0, 1], [2, 3]])
    expected = (
        "batch_norm: axis_index_groups needs axis_name, the axis it divides. Received "
        "axis_index_groups=[[0, 1], [2, 3]] and axis_name=None; name the axis, or "
        "leave the groups out."
    )
    for mode in MODES:
        assert message_in(mode, f) == expected


@pytest.mark.parametrize("groups", [[0, 1], [["a"], ["b"]], 3], ids=str)
def test_groups_that_are_no_groups(groups):
    expected = (
        "batch_norm: axis_index_groups must be a sequence of sequences of integers. "
        f"Received axis_index_groups={groups!r}; [[0, 1], [2, 3]] are two groups of "
        "two."
    )
    for mode in MAPPED:
        f = partial(batch, axis_name=AXIS, axis_index_groups=groups)
        assert message_in(mode, f) == expected


@pytest.mark.parametrize("training", [True, False])
def test_shards_of_features_with_whole_statistics(training):
    """A shard holds one feature of eight; the statistics hold all eight."""
    f = partial(batch, training=training, axis_name=AXIS)
    expected = (
        "batch_norm: stats must have shape (1,), the size of axis 2 of x. Received "
        "stats with shape (8,) for x with shape (16, 3, 1); use jaxnorm.init_stats(1), "
        "or another feature_axis."
    )
    for mode in MAPPED:
        run = spread(mode, f, in_axes=(2,), out_axes=2)
        with pytest.raises(ValueError) as error:
            jax.jit(run)(X)
        assert str(error.value) == expected


def test_replicas_of_different_feature_sizes():
    expected = (
        "merge_stats: replicas must have the same shapes. Received (mean, var, weight) "
        "of shapes ((8,), (8,), ()), ((3,), (3,), ()); gather features that are spread "
        "over devices before their replicas are merged."
    )
    with pytest.raises(ValueError) as error:
        jn.merge_stats([STATS, STATS, jn.init_stats(3)])
    assert str(error.value) == expected
