"""The nnx modules in training and evaluation, and under transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose

import jaxnorm.linen
import jaxnorm.nnx as ours
from tests.flax_modules import KEY, assert_trees_close, pure, rngs, sample

# Training and evaluation.


class Model(nnx.Module):
    """Every kind of variable."""

    def __init__(self, package=ours, *, rngs, **kwargs):
        self.dense = nnx.Linear(6, 6, rngs=rngs)
        self.norm = package.BatchNorm(6, rngs=rngs, **kwargs)
        self.layer = package.LayerNorm(6, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.norm(self.dense(x)))


def test_train_eval_attributes_and_views():
    model, x = Model(rngs=rngs()), sample((8, 6))
    model.eval()
    before = pure(model)
    model(x)
    assert_trees_close(pure(model), before)
    model.train()
    model(x)
    moved = pure(model)
    assert (moved["norm"]["mean"] != before["norm"]["mean"]).all()
    model.set_attributes(use_running_average=True)
    y = model(x)
    assert_trees_close(pure(model), moved)
    model.train()
    view = nnx.view(model, use_running_average=True)
    assert view.norm.use_running_average and not model.norm.use_running_average
    assert_allclose(view(x), y)


def test_a_traced_flag_compiles_once():
    traces = []

    @nnx.jit
    def step(norm, x, evaluating):
        traces.append(0)
        return norm(x, use_running_average=evaluating)

    x = sample((8, 6))
    for evaluating in (False, True):
        norm, expected = ours.BatchNorm(6, rngs=rngs()), ours.BatchNorm(6, rngs=rngs())
        y = step(norm, x, jnp.array(evaluating))
        assert_allclose(y, expected(x, use_running_average=evaluating), atol=1e-6)
        assert_trees_close(pure(norm), pure(expected), rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("flag", [np.array, np.bool_, jnp.array, int])
def test_a_flag_may_be_any_scalar_that_is_a_bool(flag):
    x = sample((8, 6))
    for evaluating in (False, True):
        norm, expected = ours.BatchNorm(6, rngs=rngs()), ours.BatchNorm(6, rngs=rngs())
        y = norm(x, use_running_average=flag(evaluating))
        np.testing.assert_array_equal(y, expected(x, use_running_average=evaluating))
        assert_trees_close(pure(norm), pure(expected), rtol=0)


def test_an_optimizer_trains_it():
    model = Model(debias=True, rngs=rngs())
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
    x, target = sample((8, 6)), sample((8, 6), seed=1)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean((model(x) - target) ** 2)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [step(model, optimizer) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert model.norm.weight[...] > 0


# Transformations.


def test_split_and_merge_in_both_directions():
    x = sample((8, 6))
    for source, target in ((nnx, ours), (ours, nnx)):
        model, other = Model(source, rngs=rngs()), Model(target, rngs=nnx.Rngs(1))
        model(x)
        graphdef, _ = nnx.split(other)
        merged = nnx.merge(graphdef, nnx.state(model))
        nnx.update(other, nnx.state(model))
        model.eval()
        merged.eval()
        other.eval()
        assert_allclose(merged(x), model(x), rtol=1e-5, atol=1e-6)
        assert_allclose(other(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat])
def test_jit_and_remat(transform):
    x = sample((8, 6))

    def loss(model, x):
        return jnp.sum(model(x) ** 3)

    model, expected = Model(rngs=rngs()), Model(rngs=rngs())
    value, grads = nnx.value_and_grad(transform(loss))(model, x)
    plain, plain_grads = nnx.value_and_grad(loss)(expected, x)
    assert_allclose(value, plain, rtol=1e-5)
    assert_trees_close(
        nnx.to_pure_dict(grads), nnx.to_pure_dict(plain_grads), rtol=1e-3, atol=1e-4
    )
    assert_trees_close(pure(model), pure(expected), rtol=1e-5)


def test_scan_over_layers_and_vmap_over_models():
    x = sample((8, 6))

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def make(rngs):
        return Model(rngs=rngs)

    models, same = make(rngs()), make(rngs())

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def through(model, x):
        return model(x)

    @nnx.vmap(in_axes=(0, None))
    def side_by_side(model, x):
        return model(x)

    y, first = nnx.jit(through)(models, x), nnx.jit(side_by_side)(same, x)[0]
    for layer in range(3):
        state = jax.tree.map(lambda leaf, i=layer: leaf[i], pure(make(rngs())))
        one = Model(rngs=rngs())
        nnx.update(one, state)
        x = one(x)
        if layer == 0:
            assert_allclose(first, x, atol=1e-5)
        mean = pure(models)["norm"]["mean"][layer]
        assert_allclose(mean, one.norm.mean[...], rtol=1e-4, atol=1e-6)
    assert_allclose(y, x, atol=1e-5)


def test_scan_over_steps_carries_the_statistics():
    x = sample((5, 8, 6))
    norm, expected = (ours.BatchNorm(6, decay=None, rngs=rngs()) for _ in range(2))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(norm, x):
        norm(x)
        return norm

    norm = run(norm, x)
    for batch in x:
        expected(batch)
    assert_trees_close(pure(norm), pure(expected), rtol=1e-5)
    assert_allclose(norm.mean[...], np.asarray(x).mean((0, 1)), rtol=1e-5)


def test_shard_map_pools_over_devices():
    mesh = jax.make_mesh((4,), ("data",))
    x = sample((16, 6))
    mask = (jnp.arange(16) < 9)[:, None]  # one shard is empty, one almost
    norm, expected = (
        ours.BatchNorm(6, axis_name=name, rngs=rngs()) for name in ("data", None)
    )
    run = nnx.jit(
        nnx.shard_map(
            lambda norm, x, mask: norm(x, mask=mask),
            mesh=mesh,
            in_specs=(P(), P("data"), P("data")),
            out_specs=P("data"),
        )
    )
    # A mesh has Explicit axes by default, so everything must lie on it.
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    nnx.update(norm, jax.device_put(nnx.state(norm), everywhere))
    y = run(norm, jax.device_put(x, rows), jax.device_put(mask, rows))
    assert_allclose(np.asarray(y)[:9], expected(x, mask=mask)[:9], atol=1e-5)
    assert_trees_close(pure(norm), pure(expected), rtol=1e-5, atol=1e-6)


def test_bridge_in_both_directions():
    x = sample((8, 6))
    model = bridge.ToLinen(ours.BatchNorm, args=(6,))
    variables = model.init(KEY, x)
    assert {"params", "batch_stats"} <= set(variables)
    y, updates = model.apply(variables, x, mutable=True)
    norm = ours.BatchNorm(6, rngs=rngs())
    assert_allclose(y, norm(x), atol=1e-6)
    assert_allclose(
        jax.tree.leaves(updates["batch_stats"])[0], norm.mean[...], rtol=1e-6
    )

    wrapped = bridge.ToNNX(
        jaxnorm.linen.BatchNorm(use_running_average=False), rngs=rngs()
    )
    wrapped.lazy_init(x)
    assert_allclose(wrapped(x, mutable=["batch_stats"]), norm(x), atol=1e-6)


def test_tabulate_shows_the_modules():
    x = sample((8, 6))
    tables = [
        nnx.tabulate(Model(p, rngs=rngs()), x, console_kwargs={"width": 200})
        for p in (nnx, ours)
    ]
    assert "BatchNorm" in tables[1] and "BatchStat" in tables[1]
    assert len(tables[0].splitlines()) == len(tables[1].splitlines())
