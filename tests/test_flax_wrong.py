"""Where Flax's answers are wrong, these modules are right.

Each test shows Flax failing as well, so that it tells when that has changed.
"""

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose

from tests.flax_modules import FLAX, OURS, batch_norm

APIS = pytest.mark.parametrize("api", ["linen", "nnx"])


def close(actual, expected, rtol=1e-4):
    return np.allclose(actual, expected, rtol=rtol, atol=1e-6)


@APIS
def test_masked_statistics_across_devices(api):
    """Flax takes the mean of the shards' means, whatever their counts (flax#2417)."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 3)) + jnp.arange(2)[:, None, None]
    mask = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0]], bool)[..., None]

    def pooled(package):
        def shard(x, mask):
            y, stats = batch_norm(
                api, package, x, mask=mask, momentum=0.0, axis_name="data"
            )
            return y, stats["mean"], stats["var"]

        if api == "linen":
            return jax.vmap(shard, axis_name="data")(x, mask)
        return jax.pmap(shard, axis_name="data")(x, mask)

    valid = np.asarray(x, np.float64)[np.asarray(mask)[..., 0]]
    expected = (valid - valid.mean(0)) / np.sqrt(valid.var(0) + 1e-5)
    y, mean, var = pooled(OURS[api])
    assert_allclose(mean, np.stack([valid.mean(0)] * 2), rtol=1e-5)
    assert_allclose(var, np.stack([valid.var(0)] * 2), rtol=1e-5)
    assert_allclose(np.asarray(y)[np.asarray(mask)[..., 0]], expected, atol=1e-5)
    assert not close(pooled(FLAX[api])[1], np.stack([valid.mean(0)] * 2))


@APIS
def test_an_empty_mask(api):
    x = jax.random.normal(jax.random.key(0), (4, 3))
    empty = jnp.zeros((4, 1), bool)

    def run(package):
        def total(x):
            y, stats = batch_norm(api, package, x, mask=empty)
            return jnp.sum(y**2), (y, stats)

        grads, (y, stats) = jax.jit(jax.grad(total, has_aux=True))(x)
        return grads, y, stats

    grads, y, stats = run(OURS[api])
    assert_allclose(grads, 0)
    assert np.isfinite(y).all()
    assert_allclose(stats["mean"], 0)
    assert_allclose(stats["var"], 1)
    for wrong in jax.tree.leaves(run(FLAX[api])):
        assert np.isnan(wrong).any()


@APIS
def test_one_empty_shard_does_not_poison_the_others(api):
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    mask = jnp.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)[..., None]

    def means(package):
        def shard(x, mask):
            _, stats = batch_norm(
                api, package, x, mask=mask, momentum=0.0, axis_name="data"
            )
            return stats["mean"]

        return jax.pmap(shard, axis_name="data")(x, mask)

    assert_allclose(means(OURS[api])[0], np.asarray(x[0]).mean(0), rtol=1e-5)
    assert np.isnan(means(FLAX[api])).all()


@APIS
@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_data_with_a_large_offset(api, offset):
    """Flax's default, E[x^2] - E[x]^2, cancels."""
    x = (jax.random.normal(jax.random.key(0), (4096, 3)) * 0.1 + offset).astype("f4")
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    y, stats = batch_norm(api, OURS[api], x, momentum=0.0)
    assert_allclose(stats["var"], exact.var(0), rtol=2e-6)
    assert_allclose(y, expected, atol=2e-4)
    _, stats = batch_norm(api, FLAX[api], x, momentum=0.0)
    assert not close(stats["var"], exact.var(0), rtol=0.5)


@pytest.mark.parametrize("name", ["LayerNorm", "InstanceNorm"])
def test_the_mean_is_kept_with_all_its_digits(name):
    """Flax's own test_layer_norm4 and test_instance_norm3 compare with a rounded mean.

    They add 1e6 and 1e4 to the input, subtract a float32 mean, and are off by up to
    0.04; that is the last place of 1e6. Float64 on the same values is the answer.
    """
    shape, offset = {
        "LayerNorm": ((2, 3, 4), 1e6),
        "InstanceNorm": ((2, 3, 4, 5), 1e4),
    }[name]
    axes = {"LayerNorm": -1, "InstanceNorm": (1, 2)}[name]
    x = jax.random.normal(jax.random.split(jax.random.key(0))[0], shape) + offset
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(axes, keepdims=True)) / np.sqrt(
        exact.var(axes, keepdims=True) + 1e-5
    )

    def error(package):
        module = getattr(package, name)(epsilon=1e-5, use_fast_variance=False)
        y, _ = module.init_with_output(jax.random.key(0), x)
        return np.abs(y - expected).max()

    assert error(OURS["linen"]) < 2e-6
    assert error(linen) > 1e-4


def test_half_precision_nnx_modules_keep_float32_statistics():
    """Flax's nnx casts input and running statistics to `dtype` before it begins."""
    x = jax.random.normal(jax.random.key(0), (512, 3)) * 0.1 + 20

    def evaluated(package):
        norm = package.BatchNorm(3, momentum=0.0, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        norm(x)
        y = norm(x, use_running_average=True)
        assert y.dtype == jnp.bfloat16
        return norm, np.asarray(y, np.float64)

    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    norm, y = evaluated(OURS["nnx"])
    assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
    assert_allclose(norm.mean[...], exact.mean(0), rtol=1e-6)
    assert np.abs(y - expected).max() < 0.01  # half a unit of bfloat16 at 3
    assert np.abs(evaluated(FLAX["nnx"])[1] - expected).max() > 0.2


def test_force_float32_reductions_is_always_on():
    x = (jax.random.normal(jax.random.key(0), (512, 3)) * 0.1 + 20).astype(jnp.bfloat16)
    half = {"force_float32_reductions": False, "param_dtype": jnp.bfloat16}
    exact = np.asarray(x, np.float64)
    _, stats = batch_norm("linen", OURS["linen"], x, momentum=0.0, **half)
    assert stats["mean"].dtype == jnp.float32
    assert_allclose(stats["var"], exact.var(0), rtol=1e-5)
    _, stats = batch_norm("linen", FLAX["linen"], x, momentum=0.0, **half)
    assert not close(stats["var"].astype(jnp.float32), exact.var(0), rtol=0.1)


@APIS
def test_a_bad_batch_leaves_the_statistics_alone(api):
    x = jax.random.normal(jax.random.key(0), (4, 3)).at[1, 1].set(jnp.inf)
    y, stats = batch_norm(api, OURS[api], x)
    assert not np.isfinite(y).all()  # nothing is hidden
    assert_allclose(stats["mean"], 0)
    assert_allclose(stats["var"], 1)
    _, stats = batch_norm(api, FLAX[api], x)
    assert not np.isfinite(stats["mean"]).all()


@APIS
def test_group_norm_of_sharded_channels_under_explicit_axes(api):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Explicit,))
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 16))
    sharding = NamedSharding(mesh, P(None, None, None, "model"))

    def run(package, x):
        if api == "linen":
            return package.GroupNorm(4).init_with_output(jax.random.key(0), x)[0]
        return package.GroupNorm(16, 4, rngs=nnx.Rngs(0))(x)

    expected = run(OURS[api], x)
    with jax.set_mesh(mesh):
        shards = jax.device_put(x, sharding)
        y = jax.jit(lambda x: run(OURS[api], x))(shards)
        assert y.sharding.spec == sharding.spec
        with pytest.raises(ValueError, match=r"jnp.repeat"):
            jax.jit(lambda x: run(FLAX[api], x))(shards)
    assert_allclose(y, expected, atol=1e-6)


@APIS
def test_group_norm_takes_a_mask_of_pixels(api):
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (2, 3, 3, 1))

    def run(package, mask):
        if api == "linen":
            variables = package.GroupNorm(2).init(jax.random.key(0), x)
            return package.GroupNorm(2).apply(variables, x, mask=mask)
        return package.GroupNorm(4, 2, rngs=nnx.Rngs(0))(x, mask=mask)

    full = jnp.broadcast_to(mask, x.shape)
    assert_allclose(run(OURS[api], mask), run(FLAX[api], full), atol=1e-5)
    with pytest.raises(TypeError, match="cannot reshape"):
        run(FLAX[api], mask)


def test_group_norm_of_other_axes_in_nnx():
    """Flax's nnx repeats statistics along axis 1, which is right for rank 2 alone."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))

    def run(package, **kwargs):
        norm = package.GroupNorm(4, 2, rngs=nnx.Rngs(0), **kwargs)
        return norm(x)

    groups = np.asarray(x, np.float64).reshape(2, 5, 3, 2, 2)
    mean = groups.mean((2, 4), keepdims=True)
    var = groups.var((2, 4), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    assert_allclose(run(OURS["nnx"], reduction_axes=(2, 3)), expected, atol=1e-5)
    assert not close(run(FLAX["nnx"], reduction_axes=(2, 3)), expected, rtol=0.1)


def test_nnx_weight_norm_leaves_the_kernel_alone():
    """Flax's writes the normalized kernel back: a length of 0 destroys it for good."""
    x = jnp.ones((1, 3))

    def run(package):
        layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        norm = package.WeightNorm(layer, rngs=nnx.Rngs(0))
        before = layer.kernel[...]
        path = ("kernel",)
        norm.scales[path] = nnx.Param(jnp.full(4, -2.0))
        first, second = norm(x), norm(x)
        norm.scales[path] = nnx.Param(jnp.zeros(4))
        norm(x)
        return before, layer.kernel[...], first, second

    before, after, first, second = run(OURS["nnx"])
    assert_allclose(after, before)
    assert_allclose(first, second)
    _, after, first, second = run(FLAX["nnx"])
    assert_allclose(after, 0)
    assert_allclose(second, -first, rtol=1e-5)  # the sign of the length is lost


def test_nnx_weight_norm_learns_its_lengths():
    """Flax's were plain arrays at first, which no optimizer of nnx.Param sees."""

    def run(package):
        layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        norm = package.WeightNorm(layer, rngs=nnx.Rngs(0))
        return len(jax.tree.leaves(nnx.state(norm, nnx.Param)))

    assert run(OURS["nnx"]) == 3
    numbers = tuple(map(int, version("flax").split(".")[:3]))
    assert run(FLAX["nnx"]) == (2 if numbers < (0, 12, 11) else 3)


def test_statistics_do_not_change_their_dtype():
    """Flax's turn complex64 after the first step, which a scan cannot carry."""
    x = jax.random.normal(jax.random.key(0), (8, 3), jnp.complex64)

    def dtypes(package):
        module = package.BatchNorm(use_running_average=False)
        variables = module.init(jax.random.key(0), x)
        _, updates = module.apply(variables, x, mutable=["batch_stats"])
        stats = variables["batch_stats"], updates["batch_stats"]
        return [jax.tree.map(lambda leaf: leaf.dtype, s) for s in stats]

    first, second = dtypes(OURS["linen"])
    assert first == second
    first, second = dtypes(FLAX["linen"])
    assert first != second
