"""SpectralNorm and WeightNorm of linen: the kernels of a layer, on their way."""

import jax
import jax.numpy as jnp
from flax import linen
from numpy.testing import assert_allclose

import jaxnorm.linen as ours
from tests.flax_modules import KEY, assert_trees_close, sample, train


def test_spectral_and_weight_norm_are_flaxs():
    x = sample((2, 4, 4, 3))
    layer = linen.Conv(5, (3, 3), bias_init=linen.initializers.normal())
    for name, kwargs, call in (
        ("SpectralNorm", {"n_steps": 2}, {"update_stats": True}),
        ("WeightNorm", {"variable_filter": None}, {}),
        ("WeightNorm", {"feature_axes": None}, {}),
        ("WeightNorm", {"use_scale": False, "feature_axes": (2, 3)}, {}),
    ):
        theirs, mine = (getattr(p, name)(layer, **kwargs) for p in (linen, ours))
        variables = theirs.init(KEY, x, **call)
        assert_trees_close(mine.init(KEY, x, **call), variables, rtol=1e-5)
        y_theirs, after_theirs = train(theirs, variables, x, steps=3, **call)
        y, after = train(mine, variables, x, steps=3, **call)
        assert_allclose(y, y_theirs, rtol=1e-4, atol=1e-5)
        assert_trees_close(after, after_theirs, rtol=1e-4, atol=1e-5)


def test_spectral_norm_leaves_what_starts_at_zero_as_flax_does():
    """A bias of rank 2 would else have norm 1 after its first step, however small."""
    x = sample((2, 3, 4))
    ends = []
    for library in (linen, ours):
        layer = library.SpectralNorm(linen.DenseGeneral((2, 3)))
        variables = layer.init(KEY, x, update_stats=False)

        def loss(params, stats, layer=layer):
            y, updates = layer.apply(
                {"params": params, "batch_stats": stats},
                x,
                update_stats=True,
                mutable=["batch_stats"],
            )
            return jnp.mean((y - 1) ** 2), updates["batch_stats"]

        params, stats = variables["params"], variables["batch_stats"]
        for _ in range(4):
            gradients, stats = jax.grad(loss, has_aux=True)(params, stats)
            params = jax.tree.map(lambda p, g: p - 1e-2 * g, params, gradients)
        ends.append((params, stats))
    assert_trees_close(*ends, rtol=1e-4, atol=1e-5)


def test_spectral_norm_takes_a_traced_flag():
    norm, x = ours.SpectralNorm(linen.Dense(4)), sample()
    variables = norm.init(KEY, x, update_stats=False)

    def run(update):
        return norm.apply(variables, x, update_stats=update, mutable=["batch_stats"])

    for update in (True, False):
        # Outputs are sums of terms of size 1: their rounding does not shrink with them.
        traced = jax.jit(run)(jnp.array(update))
        assert_trees_close(traced, run(update), rtol=1e-5, atol=1e-6)


def test_spectral_norm_that_updates_nothing_needs_no_mutable_statistics():
    norm, x = ours.SpectralNorm(linen.Dense(4)), sample()
    variables = norm.init(KEY, x, update_stats=False)
    y, updates = norm.apply(variables, x, update_stats=True, mutable=["batch_stats"])
    assert_allclose(norm.apply(variables, x, update_stats=False), y, rtol=1e-6)
    stats = variables["batch_stats"]
    assert not jax.tree.all(jax.tree.map(jnp.allclose, stats, updates["batch_stats"]))


def test_weight_norm_leaves_a_mutable_kernel_as_it_is():
    """As Flax's does: what is normalized is for the call alone."""
    x = jnp.ones((4, 3))
    for library in (linen, ours):
        layer = library.WeightNorm(linen.Dense(4))
        variables = layer.init(jax.random.key(1), x)
        variables = jax.tree.map(lambda leaf: 1 + leaf, variables)
        _, after = layer.apply(variables, x, mutable=True)
        assert_trees_close(after["params"], variables["params"])
