"""Moments of a batch that plain jit spreads: a part on each device, merged."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
import jaxnorm.linen
from tests import reference
from tests.collectives import list_collectives
from tests.compiling import quick_jit
from tests.reference import moments64
from tests.spreading import AUTO, EXPLICIT, MESH, each_kind_of_axes, make_mesh, put

RNG = np.random.default_rng(0)
STATS = jn.init_stats(6)
X = RNG.normal(3, 2, (16, 3, 6)).astype(np.float32)
PER_ROW = RNG.uniform(0.5, 2, (16, 3, 1)).astype(np.float32)
PER_ROW[4:8] = PER_ROW[9] = 0

WEIGHTS = {
    "none": None,
    "of rows": PER_ROW,
    "a mask": PER_ROW > 0,
    "of features": RNG.uniform(0.5, 2, (1, 1, 6)).astype(np.float32),
    "of elements": RNG.uniform(0.5, 2, (16, 3, 6)).astype(np.float32),
    "the same for all rows": np.array([[[1], [0], [2]]], np.float32),
}


@each_kind_of_axes
@pytest.mark.parametrize(
    "spec", [("data",), (("data", "model"),), ("data", None, "model")]
)
@pytest.mark.parametrize("name", WEIGHTS)
def test_moments_are_those_of_numpy(mode, spec, name):
    weights, axis = WEIGHTS[name], (0, 1)
    f = jax.jit(partial(jn.compute_moments, axis=axis))
    x = put(mode, X, *spec)
    if weights is not None:
        own = [s if n > 1 else None for s, n in zip(spec, weights.shape, strict=False)]
        weights = put(mode, weights, *own)
    count, mean, m2 = f(x, weights=weights)
    total, expected, var = moments64(X, axis, WEIGHTS[name])
    np.testing.assert_allclose(np.broadcast_to(count, (6,)), total, rtol=1e-6)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(m2, var * total, rtol=2e-6)


@each_kind_of_axes
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("axis", [(0,), (0, 1), (0, 2), (0, 1, 2)])
def test_other_dtypes_and_axes(mode, dtype, axis):
    x = jnp.asarray(X + 1j * X[::-1] if dtype == "complex64" else X, dtype)
    moments = jax.jit(partial(jn.compute_moments, axis=axis))(put(mode, x, "data"))
    wide = np.asarray(x, np.complex128)
    count, mean, var = moments64(wide.real, axis)
    if dtype == "complex64":
        _, imaginary, more = moments64(wide.imag, axis)
        mean, var = mean + 1j * imaginary, var + more
    np.testing.assert_allclose(moments.mean, mean, rtol=2e-6)
    np.testing.assert_allclose(moments.m2, var * count, rtol=2e-6)


@each_kind_of_axes
def test_values_without_features(mode):
    x = put(mode, X.ravel(), "data")
    moments = jax.jit(partial(jn.compute_moments, axis=0))(x)
    np.testing.assert_allclose(moments.mean, X.mean(), rtol=1e-6)
    assert list_collectives(jax.jit(lambda x: jn.compute_moments(x, 0)), x) == [
        "all-reduce"
    ]


@pytest.mark.parametrize("rows", [12, 4])
def test_rows_that_devices_cannot_share_evenly(rows):
    """Eight devices hold them, along an axis of four."""
    x = put(AUTO, X[:rows], "data")
    y, stats = jax.jit(partial(jn.batch_norm, training=True))(x, STATS)
    expected = jn.batch_norm(X[:rows], STATS, training=True)
    chex.assert_trees_all_close((y, stats), expected, rtol=2e-6, atol=2e-6)


def test_what_is_not_finite_moves_no_average_and_hides_where_its_weight_is_zero():
    x = X.copy()
    x[9, 0, 0], x[4, 0, 1] = np.inf, np.nan  # both of weight 0
    norm = jax.jit(partial(jn.batch_norm, training=True))
    expected = norm(np.where(PER_ROW > 0, X, 0), STATS, weights=PER_ROW)[1]
    weights = put(AUTO, PER_ROW, "data")
    _, stats = norm(put(AUTO, x, "data"), STATS, weights=weights)
    chex.assert_trees_all_close(stats, expected, rtol=2e-6)
    y, stats = norm(put(AUTO, x, "data"), STATS)
    assert np.isnan(y[:, :, 0]).all() and np.isnan(y[:, :, 1]).any()
    chex.assert_trees_all_equal(stats.mean[:2], STATS.mean[:2])


@each_kind_of_axes
def test_transformations_of_a_spread_batch(mode):
    """Models that are mapped over, second derivatives, and a loop of steps."""

    def loss(x):
        y, stats = jn.batch_norm(x, STATS, training=True)
        return jnp.sum(jnp.sin(y)) + jnp.sum(stats.var)

    def curvature(x):
        return jax.jvp(jax.grad(loss), (x,), (jnp.sin(x),))[1]

    def steps(x):
        return jax.lax.scan(lambda x, _: (jax.grad(loss)(x), loss(x)), x, length=2)

    x = put(mode, X, "data")
    for f in (curvature, steps, jax.checkpoint(jax.grad(loss))):
        chex.assert_trees_all_close(
            quick_jit(f)(x), quick_jit(f)(X), rtol=1e-4, atol=1e-4
        )
    models = put(mode, np.stack([X, X + 1]), None, "data")
    expected = jnp.stack([jax.grad(loss)(X), jax.grad(loss)(X + 1)])
    got = quick_jit(jax.vmap(jax.grad(loss)))(models)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_axes_that_are_manual_beside_others():
    """Each of four devices along "data" has two along "model" to share its rows."""

    @partial(
        jax.shard_map,
        mesh=make_mesh(AUTO, MESH),
        in_specs=P("data"),
        out_specs=(P("data"), P()),
        axis_names={"data"},
    )
    def norm(x):
        return jn.batch_norm(x, STATS, training=True, axis_name="data")

    x = put(AUTO, X, ("data", "model"))
    got = jax.jit(norm)(x)
    expected = jn.batch_norm(X, STATS, training=True)
    chex.assert_trees_all_close(got, expected, rtol=2e-6, atol=2e-6)


def test_parts_have_shifts_of_their_own():
    """Moments of shards that lie far from each other keep their digits."""
    x = RNG.normal(0, 1e-3, (16, 6)).astype(np.float32)
    x[8:] += 1
    _, mean, m2 = jax.jit(partial(jn.compute_moments, axis=0))(put(AUTO, x, "data"))
    count, expected, var = moments64(x, (0,))
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(m2, var * count, rtol=2e-6)


@each_kind_of_axes
def test_norms_of_each_example_exchange_nothing(mode):
    x, scale = put(mode, X, "data"), np.ones(6, np.float32)
    for norm in (
        jn.layer_norm,
        jn.rms_norm,
        jn.instance_norm,
        partial(jn.group_norm, num_groups=2),
    ):
        forward_backward = jax.jit(
            jax.grad(lambda x, n=norm: jnp.sum(n(x, scale) ** 3))
        )
        assert list_collectives(forward_backward, x) == []


@each_kind_of_axes
def test_groups_of_channels_over_the_whole_batch(mode):
    """As Flax's GroupNorm reduces what it is told to."""
    norm = jaxnorm.linen.GroupNorm(2, reduction_axes=(0, 1, 2))
    variables = norm.init(jax.random.key(0), X)
    got = jax.jit(norm.apply)(variables, put(mode, X, "data"))
    expected = reference.normalize(
        np, X.astype(np.float64), None, None, axes=(0, 1, 3), groups=2, eps=1e-6
    )
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_number_of_rows_that_is_not_known():
    """Exported for eight devices, with a size that is a symbol."""
    (rows,) = export.symbolic_shape("8 * n")
    mesh = NamedSharding(make_mesh(AUTO, MESH), P("data"))
    norm = jax.jit(lambda x: jn.batch_norm(x, STATS, training=True), in_shardings=mesh)
    shape = jax.ShapeDtypeStruct((rows, 3, 6), jnp.float32)
    exported = export.export(norm)(shape)
    assert exported.nr_devices == 8
    got = jax.jit(exported.call)(put(AUTO, X, "data"))
    expected = jn.batch_norm(X, STATS, training=True)
    chex.assert_trees_all_close(got, expected, rtol=2e-6, atol=2e-6)


def test_a_size_other_than_the_first_that_is_not_known():
    """Rows are measured in parts all the same: one collective."""
    (time,) = export.symbolic_shape("t")
    mesh = NamedSharding(make_mesh(AUTO, MESH), P("data"))
    norm = jax.jit(lambda x: jn.batch_norm(x, STATS, training=True), in_shardings=mesh)
    exported = export.export(norm)(jax.ShapeDtypeStruct((16, time, 6), jnp.float32))
    x = put(AUTO, X, "data")
    assert list_collectives(jax.jit(exported.call), x) == ["all-reduce"]
    expected = jn.batch_norm(X, STATS, training=True)
    got = jax.jit(exported.call)(x)
    chex.assert_trees_all_close(got, expected, rtol=2e-6, atol=2e-6)


@each_kind_of_axes
def test_the_shift_of_a_part_is_that_of_a_slice(mode):
    """Of the rows that a device has to itself, not of an axis that is spread."""
    x = put(mode, np.ones((32, 8, 6), np.float32), "data", "model")
    measure = jax.jit(partial(jn.compute_moments, axis=(0, 1)))
    text = measure.lower(x).as_text()
    assert "tensor<8x1x8x6xf32>" in text  # one of the four rows of a part
    few = put(mode, np.ones((4, 8, 6), np.float32), "data", "model")
    for value in (x, few):  # of few rows, only an axis that is spread could be sliced
        collectives = set(list_collectives(measure, value))
        assert not collectives & {"collective-permute", "all-gather", "all-to-all"}


def test_no_features():
    x = put(AUTO, np.ones((8, 0), np.float32), "data")
    assert jax.jit(lambda x: jn.compute_moments(x, 0))(x).mean.shape == (0,)


@pytest.mark.parametrize("mapped", [False, True])
def test_rows_whose_weights_alone_are_sharded(mapped):
    def measure(weights):
        return jn.compute_moments(X, (0, 1), weights=weights)

    weights = put(EXPLICIT, np.stack([PER_ROW] * 4), *["data"] if mapped else [])
    got = jax.jit(jax.vmap(measure) if mapped else lambda w: measure(w[0]))(weights)
    count, mean, var = moments64(X, (0, 1), PER_ROW)
    m2 = np.broadcast_to(var * count, got.m2.shape)
    np.testing.assert_allclose(got.mean, np.broadcast_to(mean, got.mean.shape), 1e-6)
    np.testing.assert_allclose(got.m2, m2, 2e-6)


@each_kind_of_axes
def test_examples_that_are_mapped_over_and_spread(mode):
    """What a GPU would split is normalized in any case."""
    x = RNG.normal(1e3, 2, (8, 32, 16, 6)).astype(np.float32)

    def norm(x):
        return jn.batch_norm(x, STATS, training=True)

    got = quick_jit(jax.vmap(norm))(put(mode, x, ("data", "model")))
    expected = jax.vmap(norm)(x)
    chex.assert_trees_all_close(got, expected, rtol=1e-6, atol=1e-6)
