"""Running statistics that each device kept for itself: merged, and told apart."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from jaxnorm import check_replicas, shifted
from jaxnorm import replicas as replicas_module
from tests.collectives import list_collectives
from tests.spreading import (
    AXIS,
    CHECKED,
    DEVICES,
    MAPPED,
    PMAP,
    UNCHECKED,
    make_mesh,
    spread,
)

RNG = np.random.default_rng(0)
# Two steps of eight shards with two rows each, of means of their own.
X = RNG.normal(RNG.normal(0, 3, (1, 8, 1, 1)), 1, (2, 8, 2, 3)).astype(np.float32)
WIDE = X.astype(np.float64)


def train(axis_name, steps, stats):
    """Return the running statistics after two steps; equal weight for both."""
    for x in steps:
        _, stats = jn.batch_norm(
            x, stats, training=True, decay=None, axis_name=axis_name
        )
    return stats


def replicas():
    return jax.jit(jax.vmap(partial(train, None), in_axes=(1, None)))(
        X, jn.init_stats(3)
    )


def expected(method):
    """Return what merging gives, from the statistics of every step and shard."""
    mean, var = WIDE.mean(2).mean(0), WIDE.var(2).mean(0)
    between = mean.var(0) if method == "total_variance" else 0
    return mean.mean(0), var.mean(0) + between


METHODS = ["total_variance", "average"]


@pytest.mark.parametrize("method", METHODS)
def test_replicas_from_pmap_are_merged(method):
    steps = X.swapaxes(0, 1)
    stats = jax.pmap(partial(train, None), in_axes=(0, None))(steps, jn.init_stats(3))
    assert stats.mean.shape == (DEVICES, 3)
    mean, var = expected(method)
    fetched = jax.device_get(stats)
    one_by_one = [jax.tree.map(lambda leaf, i=i: leaf[i], fetched) for i in range(8)]
    for given in (stats, one_by_one, fetched):
        merged = jn.merge_stats(given, method=method)
        np.testing.assert_allclose(merged.mean, mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(merged.var, var, rtol=2e-6)
        assert merged.weight == 2


@pytest.mark.parametrize("method", METHODS)
def test_replicas_are_merged_in_one_program(method, monkeypatch):
    """Collectives of several at a time can wait for one another, and never end."""
    traced = []

    def merge(parts):
        traced.append(isinstance(parts.mean, jax.core.Tracer))
        return shifted.merge(parts)

    monkeypatch.setattr(replicas_module, "merge", merge)
    replica = jn.init_stats(5)  # a size of its own, that nothing else has compiled
    jn.merge_stats([replica] * 7, method=method)
    assert traced
    assert all(traced)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MAPPED, ids=str)
def test_replicas_are_merged_where_they_are(mode, method):
    """As before an evaluation inside: one collective, and the same on every device."""

    def run(x):
        stats = train(None, x, jn.init_stats(3))
        return jn.merge_stats(stats, method=method, axis_name=AXIS)

    f = spread(mode, run, in_axes=(1,), out_axes=None)
    rows = X.reshape(2, 16, 3)
    mean, var = expected(method)
    merged = jax.jit(f)(rows)
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(merged.var, var, rtol=2e-6)
    chex.assert_trees_all_close(merged, jn.merge_stats(replicas(), method=method))
    if mode in (CHECKED, UNCHECKED):
        assert list_collectives(jax.jit(f), rows) == ["all-reduce"]


def test_merging_by_name_takes_one_replica():
    stats = [jn.init_stats(3)] * 2
    with pytest.raises(TypeError) as error:
        jax.vmap(lambda _: jn.merge_stats(stats, axis_name=AXIS), axis_name=AXIS)(X)
    assert str(error.value) == (
        "merge_stats: with axis_name, stats must be the one NormStats of this device. "
        "Received list; leave axis_name out to merge a sequence."
    )


# Telling replicas apart.


def declared_the_same(axis_name):
    """Return statistics that shard_map without check_vma believes to be the same."""
    f = jax.shard_map(
        partial(train, axis_name),
        mesh=make_mesh(UNCHECKED),
        in_specs=(P(None, AXIS), P()),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(f)(X.reshape(2, 16, 3), jn.init_stats(3))


def test_copies_that_are_not_copies_are_reported():
    state = {"batch_stats": declared_the_same(None)}
    with pytest.raises(ValueError) as error:
        check_replicas(state, rtol=1e-6)
    message = str(error.value)
    assert message.startswith(
        "check_replicas: replicas must agree to rtol=1e-06 and atol=0.0. Received "
        f"['batch_stats'].mean where {jax.devices()[1]} differs from "
    )
    assert message.count(".mean where") == message.count(".var where") == 7
    assert ".weight" not in message  # this one agrees
    assert message.endswith(
        "; pool with axis_name, or merge them with jaxnorm.merge_stats."
    )
    difference = np.max(np.abs(np.diff(WIDE.mean(2).mean(0)[:2], axis=0)))
    assert f"by {difference:.3g}, " in message


def test_not_all_of_many_copies_are_listed():
    for layers, end in (
        (100, "by 1, and 80 more; pool"),
        (21, "by 1, and 1 more; pool"),
        (20, "by 1; pool"),
    ):
        tree = {f"layer {i}": np.array([[1.0], [2.0]]) for i in range(layers)}
        with pytest.raises(ValueError, match=end) as error:
            check_replicas(tree, stacked=True)
        assert str(error.value).count(" differs from ") == 20


def test_a_weight_may_be_a_python_number():
    def merge(mean):
        return jn.merge_stats(jn.NormStats(mean, mean, 1.0), axis_name=AXIS)

    means = jnp.arange(6.0).reshape(2, 3)
    merged = jax.vmap(merge, axis_name=AXIS)(means)
    np.testing.assert_allclose(merged.mean[0], means.mean(0))


def test_copies_that_are_copies_pass():
    check_replicas({"batch_stats": declared_the_same(AXIS), "step": 3, "name": None})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int4"])
def test_copies_of_a_single_element(dtype):
    """Each device holds all of it, which is no axis of replicas."""
    everywhere = jax.sharding.NamedSharding(make_mesh(CHECKED), P())
    check_replicas(jax.device_put(jnp.ones((1, 3), dtype), everywhere))
    check_replicas(jnp.ones((2, 3), dtype), stacked=True)
    with pytest.raises(ValueError, match="replica 1 differs from replica 0 by 1"):
        check_replicas(jnp.array([[1], [0]], dtype), stacked=True)


def test_replicas_along_an_axis_are_told_apart():
    stats = jax.device_get(replicas())
    same = jax.tree.map(lambda leaf: np.stack([leaf[0]] * 8), stats)
    check_replicas(same, stacked=True)
    same.var[5, 1] += 1e-3
    check_replicas(same, stacked=True, atol=2e-3)
    with pytest.raises(ValueError, match=r"Received \.var where replica 5 differs"):
        check_replicas(same, stacked=True, atol=1e-4)
    same.var[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"\.var where replica 5 .* by nan"):
        check_replicas(same, stacked=True, atol=1)


def test_random_keys_are_compared_too():
    keys = jax.random.split(jax.random.key(0), 2)
    check_replicas({"key": jnp.stack([keys[0]] * 2)}, stacked=True)
    with pytest.raises(ValueError, match="'key'"):
        check_replicas({"key": keys}, stacked=True)


def test_shards_of_one_array_are_no_replicas():
    """Only what is held twice is compared, also where an array is spread out."""
    mesh = make_mesh(PMAP, {"data": 2, "model": 4})
    for spec in (P("model"), P("data"), P()):
        array = jax.device_put(np.arange(8.0), jax.sharding.NamedSharding(mesh, spec))
        check_replicas({"mean": array.astype(jnp.bfloat16), "used": array > 3})

    def wrong(x):
        return x + jax.lax.axis_index("data")

    broken = jax.jit(
        jax.shard_map(
            wrong, mesh=mesh, in_specs=P(), out_specs=P("model"), check_vma=False
        )
    )(np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="by 1") as error:
        check_replicas(broken)
    assert str(error.value).count("differs from") == 4


def test_a_check_that_compares_nothing_raises():
    """As of what pmap returns, unless `stacked` says so."""
    mesh = make_mesh(PMAP, {"data": 8})
    sharding = jax.sharding.NamedSharding(mesh, P("data"))
    stats = jax.device_put(replicas(), sharding)
    with pytest.raises(ValueError, match="must be copies that can be compared"):
        check_replicas(stats)
    with pytest.raises(ValueError, match="replica 1 differs from replica 0"):
        check_replicas(stats, stacked=True)
    step = jax.device_put(3, jax.sharding.NamedSharding(mesh, P()))
    check_replicas({"stats": stats, "step": step})
    check_replicas({"stats": jn.init_stats(3), "step": 3})  # on one device
    check_replicas({})


def test_replicas_that_left_their_devices_need_stacked():
    stats = jax.device_get(replicas())
    text = r"Received ndarray, which is on no device; pass stacked=True, or check befo"
    with pytest.raises(ValueError, match=text):
        check_replicas({"stats": stats, "step": 3})
    with pytest.raises(ValueError, match="replica 1 differs from replica 0"):
        check_replicas(stats, stacked=True)


def test_equal_nans_and_infinities_agree():
    bad = np.array([np.nan, np.inf, 1.0])
    jn.check_replicas({"mean": np.stack([bad, bad])}, stacked=True)
    with pytest.raises(ValueError, match=r"replica 1 differs from replica 0 by 0\.5;"):
        jn.check_replicas({"mean": np.stack([bad, bad + 0.5])}, stacked=True)


def test_integers_are_compared_as_integers():
    """Where float64 holds the same for both."""
    large = np.array([2**53, 2**53 + 1])
    with pytest.raises(ValueError, match="replica 1 differs from replica 0 by 1;"):
        jn.check_replicas({"step": large}, stacked=True)
    with pytest.raises(ValueError, match="replica 1 differs from replica 0 by 2;"):
        jn.check_replicas(np.array([[10], [12]], np.uint8), stacked=True, rtol=0.1)
    jn.check_replicas({"step": np.array([[10], [11]])}, stacked=True, rtol=0.1)
    jn.check_replicas({"used": np.array([True, True])}, stacked=True)
    with pytest.raises(ValueError, match=r"'used'.* by 1;"):
        jn.check_replicas({"used": np.array([True, False])}, stacked=True)


@pytest.mark.parametrize("stacked", [True, False])
def test_names_are_no_replicas(stacked):
    with pytest.raises(
        TypeError,
        match=r"check_replicas: arrays must hold numbers\. Received \['name'\] of <U1; "
        "leave it out of the tree",
    ):
        jn.check_replicas({"name": np.array(["a", "a"])}, stacked=stacked)


def test_replicas_that_are_traced_cannot_be_compared():
    with pytest.raises(ValueError, match="some that are traced; call it outside of"):
        jax.jit(jn.check_replicas)({"mean": jnp.ones(3)})
