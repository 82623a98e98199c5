"""Small statistics between devices: what varies, and what lies where.

That every way of spreading a batch gives one answer is what the `test_sync_*` files
show; here are the corners of meshes with two axes, and of devices that hold one row.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from tests.compiling import quick_jit
from tests.spreading import AUTO, CHECKED, EXPLICIT, UNCHECKED, make_mesh

SHAPE = {"data": 4, "model": 2}
CHANNELS = 6
RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (8, 5, CHANNELS)).astype(np.float32)
STATS = jn.init_stats(CHANNELS)
PER_FEATURE = STATS._replace(weight=jnp.zeros(CHANNELS))


def test_one_feature_vector_a_device():
    """vmap over the batch, as in libraries that write models for one example."""
    y, stats = jax.vmap(
        lambda x: jn.batch_norm(x, STATS, training=True, axis_name="batch"),
        axis_name="batch",
        out_axes=(0, None),
    )(X[:, 0])
    expected = jn.batch_norm(X[:, 0], STATS, training=True)
    chex.assert_trees_all_close((y, stats), expected, rtol=2e-6, atol=1e-6)


def test_complex_statistics_are_pooled():
    """A complex mean, and a real variance and weight, in one collective."""
    x = np.asarray(X + 1j * X[::-1], np.complex64)

    def f(x, **options):
        stats = jn.init_stats(CHANNELS, dtype=jnp.complex64)
        return jn.batch_norm(x, stats, training=True, **options)

    pooled = partial(f, axis_name="batch")
    y, stats = jax.jit(jax.vmap(pooled, axis_name="batch", out_axes=(0, None)))(x)
    chex.assert_trees_all_close((y, stats), f(x), rtol=2e-6, atol=1e-6)
    centered = x - x.astype(np.complex128).mean((0, 1))
    var = np.mean(np.abs(centered) ** 2, (0, 1))
    np.testing.assert_allclose(y, centered / np.sqrt(var + 1e-5), atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [4, 64])
def test_pooling_promotes_no_ranks(rows, masked):
    """By an axis name, over few rows and many, and by the compiler on eight devices."""
    x = jnp.ones((rows, 8, CHANNELS))

    def loss(x, axis_name=None):
        mask = x > 0 if masked else None
        _, stats = jn.batch_norm(
            x, STATS, training=True, weights=mask, axis_name=axis_name
        )
        return stats.var.sum()

    def mapped(x):
        return jax.vmap(partial(loss, axis_name="rows"), axis_name="rows")(x).sum()

    mesh = make_mesh(AUTO, SHAPE)
    spread = jax.device_put(x, NamedSharding(mesh, P("data")))
    with jax.numpy_rank_promotion("raise"):
        jax.jit(jax.grad(mapped)).lower(x)
        jax.jit(jax.grad(loss)).lower(spread)


def test_many_examples_mapped_over_take_memory_as_few():
    """A list of what each has would be of 4096 x 4096 x 8 numbers, 512 MiB."""
    f = jax.jit(
        jax.vmap(
            lambda x: jn.batch_norm(
                x, jn.init_stats(8), training=True, axis_name="batch"
            )[0],
            axis_name="batch",
        )
    )
    x = RNG.normal(1e6, 1, (4096, 8)).astype(np.float32)
    compiled = f.lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * x.nbytes
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(compiled(x), expected, atol=2e-6)


@pytest.mark.parametrize("mode", [CHECKED, UNCHECKED], ids=str)
@pytest.mark.parametrize("axis_name", [None, "data", ("data", "model")])
@pytest.mark.parametrize(
    ("spec", "features"),
    [
        (P(), P()),
        (P("data"), P()),
        (P(("data", "model")), P()),
        (P("data", None, "model"), P("model")),
        (P(None, None, "model"), P("model")),
    ],
    ids=str,
)
def test_traced_training_wherever_the_batch_varies(mode, axis_name, spec, features):
    """Training varies over other axes than evaluation; a branch must not show it."""

    def differing(leaf):
        same = set(SHAPE) - set(jax.typeof(leaf).manual_axis_type.varying)
        return lax.pcast(leaf, tuple(same), to="varying") if same else leaf

    def run(training, traced):
        def on_each_device(x, stats, flag):
            flag = flag if traced else training
            results = jn.batch_norm(x, stats, training=flag, axis_name=axis_name)
            if mode is CHECKED:
                results = jax.tree.map(differing, results)
            return jax.tree.map(lambda leaf: leaf[None, None], results)

        f = jax.shard_map(
            on_each_device,
            mesh=make_mesh(mode, SHAPE),
            in_specs=(spec, features, P()),
            out_specs=P("data", "model"),
            check_vma=mode is CHECKED,
        )
        return quick_jit(f)(X, PER_FEATURE, training)

    for training in (True, False):
        got, expected = (run(training, traced) for traced in (True, False))
        chex.assert_trees_all_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("number_of_devices")
@pytest.mark.parametrize("mode", [CHECKED, UNCHECKED], ids=str)
def test_pooling_over_an_axis_along_which_the_batch_is_the_same(mode):
    """It is then counted once for each of these devices: nothing changes."""
    sharded = jax.shard_map(
        lambda x: jn.batch_norm(x, STATS, training=True, axis_name=("data", "model")),
        mesh=make_mesh(mode, SHAPE),
        in_specs=P("data"),
        out_specs=(P("data"), P()),
        check_vma=mode == CHECKED,
    )

    def value_and_grad(f):
        def loss(x):
            y, stats = f(x)
            return jnp.sum(y**3) + jnp.sum(stats.var), (y, stats)

        return quick_jit(jax.value_and_grad(loss, has_aux=True))(X)

    alone = value_and_grad(lambda x: jn.batch_norm(x, STATS, training=True))
    chex.assert_trees_all_close(value_and_grad(sharded), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [AUTO, EXPLICIT], ids=str)
@pytest.mark.parametrize("spec", [P("data", None, "model"), P(None, None, "model")])
@pytest.mark.parametrize("features", [P(), P("model")], ids=str)
@pytest.mark.parametrize("stats", [STATS, PER_FEATURE], ids=["one", "per feature"])
def test_statistics_stay_where_they_are(mode, spec, features, stats):
    """Whatever way the features of the batch lie; so a loop may carry them."""
    mesh = make_mesh(mode, SHAPE)

    def place(leaf, spec):
        return jax.device_put(leaf, NamedSharding(mesh, spec if leaf.ndim else P()))

    def step(x, stats, training):
        return jn.batch_norm(x, stats, training=training)

    x, placed = place(X, spec), jax.tree.map(lambda leaf: place(leaf, features), stats)
    for training in (True, False):
        for f in (quick_jit(step), quick_jit(step, static_argnums=2)):
            y, new = f(x, placed, training)
            expected = step(X, stats, training)
            chex.assert_trees_all_close((y, new), expected, rtol=1e-5, atol=1e-5)
            assert y.sharding.is_equivalent_to(x.sharding, X.ndim)
            if mode is EXPLICIT:
                chex.assert_trees_all_equal_shapes_and_dtypes(new, placed)
                for leaf, old in zip(new, placed, strict=True):
                    assert leaf.sharding.is_equivalent_to(old.sharding, old.ndim)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("groups", [None, [[0, 1], [2, 3]]])
def test_shard_map_over_one_axis_of_an_explicit_mesh(check_vma, groups):
    """The features stay spread over the other axis, and are exchanged so."""
    mesh = make_mesh(EXPLICIT, SHAPE)

    def on_each_device(x, stats):
        y, new = jn.batch_norm(
            x, stats, training=True, axis_name="data", axis_index_groups=groups
        )
        return y, jax.tree.map(lambda leaf: leaf[None], new)

    f = jax.shard_map(
        on_each_device,
        mesh=mesh,
        axis_names={"data"},
        in_specs=(P("data"), P()),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    with jax.set_mesh(mesh):
        x = jax.device_put(X, P("data", None, "model"))
        stats = jax.device_put(PER_FEATURE, P("model"))
        y, new = jax.device_get(quick_jit(f)(x, stats))
        dx = quick_jit(jax.grad(lambda x: jnp.sum(f(x, stats)[0] ** 3)))(x)
    parts = [X] if groups is None else np.split(X, 2)
    expected = [jn.batch_norm(part, PER_FEATURE, training=True) for part in parts]
    chex.assert_trees_all_close(y, np.concatenate([e[0] for e in expected]), atol=1e-5)
    for device in range(4):
        own = expected[device * len(parts) // 4][1]
        got = jax.tree.map(lambda leaf, i=device: leaf[i], new)
        chex.assert_trees_all_close(got, own, rtol=1e-5)
    loss = jax.grad(lambda x: jnp.sum(jn.batch_norm(x, STATS, training=True)[0] ** 3))
    expected_dx = np.concatenate([loss(part) for part in parts])
    np.testing.assert_allclose(dx, expected_dx, atol=1e-4)


OF_A_VECTOR = {
    "batch": lambda x, v: jn.batch_norm(x, STATS, None, v, training=True)[0],
    "evaluation": lambda x, v: jn.batch_norm(x, STATS, None, v, training=False)[0],
    "layer": lambda x, v: jn.layer_norm(x, None, v),
    "group": lambda x, v: jn.group_norm(x, None, v, num_groups=2),
    "normalize": lambda x, v: jn.normalize(x, 0.0, 1.0, None, v),
    "mean": lambda x, v: jn.normalize(x, v, 1.0),
}


@pytest.mark.parametrize("name", OF_A_VECTOR)
def test_gradients_where_only_the_bias_differs_between_devices(name):
    """The tangent of the output has the type of the output, not that of x."""
    mesh = make_mesh(AUTO, SHAPE)
    values = jnp.asarray(RNG.normal(size=(4, CHANNELS)), jnp.float32)
    f = OF_A_VECTOR[name]
    spread = jax.shard_map(
        lambda x, v: f(x, v[0])[None],
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P("data"),
    )
    got = quick_jit(jax.grad(lambda x: jnp.sum(jnp.cos(spread(x, values)))))(X)
    expected = jax.grad(lambda x: sum(jnp.sum(jnp.cos(f(x, v))) for v in values))(X)
    chex.assert_trees_all_close(got, expected, atol=1e-5)


@pytest.mark.parametrize("name", OF_A_VECTOR)
def test_gradients_where_only_the_bias_is_sharded(name):
    mesh = make_mesh(EXPLICIT, SHAPE)
    f = OF_A_VECTOR[name]
    bias = RNG.normal(size=CHANNELS).astype(np.float32)

    def loss(x, bias):
        return jnp.sum(jnp.cos(f(x, bias)))

    expected = jax.grad(loss)(X, bias)
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P()))
        sharded = jax.device_put(bias, NamedSharding(mesh, P("model")))
        got = quick_jit(jax.grad(loss))(x, sharded)
    chex.assert_trees_all_close(jax.device_get(got), expected, atol=2e-5)


def test_gradients_where_training_differs_between_devices():
    """Two branches that run on different devices at once must not communicate."""
    mesh = make_mesh(AUTO, SHAPE)
    stats = jn.NormStats(jnp.ones(CHANNELS), jnp.full(CHANNELS, 2.0), jnp.ones(()))
    scale = jnp.asarray(RNG.normal(1, 0.1, CHANNELS), jnp.float32)
    flags = [True, False, False, True]

    def f(x, scale, training):
        return jn.batch_norm(x, stats, scale, training=training)[0]

    spread = jax.shard_map(
        lambda x, scale, training: f(x, scale, training[0])[None],
        mesh=mesh,
        in_specs=(P(), P(), P("data")),
        out_specs=P("data"),
    )

    def loss(x, scale):
        return jnp.sum(jnp.cos(spread(x, scale, jnp.array(flags))))

    def expected(x, scale):
        return sum(jnp.sum(jnp.cos(f(x, scale, flag))) for flag in flags)

    got = quick_jit(jax.grad(loss, (0, 1)))(X, scale)
    chex.assert_trees_all_close(got, jax.grad(expected, (0, 1))(X, scale), atol=2e-5)
