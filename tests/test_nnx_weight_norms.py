"""SpectralNorm and WeightNorm of nnx: the kernels of a layer, on their way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jaxnorm.nnx as ours
from tests.flax_modules import assert_trees_close, pure, rngs, sample


@pytest.mark.parametrize("n_steps", [1, 3])
def test_spectral_norm_is_flaxs(n_steps):
    """Flax's writes the kernel back, so it is compared from step to step."""
    x = sample((2, 4, 4, 3))
    theirs, mine = (
        package.SpectralNorm(
            nnx.Conv(3, 5, (3, 3), rngs=rngs()), n_steps=n_steps, rngs=rngs()
        )
        for package in (nnx, ours)
    )
    assert_trees_close(pure(mine), pure(theirs))
    kernel = mine.layer_instance.kernel[...]
    for _ in range(3):
        assert_allclose(mine(x), theirs(x), rtol=1e-4, atol=1e-5)
    path = ("kernel", "u")
    assert_allclose(
        mine.batch_stats[path][...], theirs.batch_stats[path][...], atol=1e-4
    )
    assert_allclose(mine.layer_instance.kernel[...], kernel)


def test_a_matrix_is_no_error():
    layer = nnx.Linear(6, 4, rngs=rngs())
    norm = ours.SpectralNorm(layer, error_on_non_matrix=True, rngs=rngs())
    plain = ours.SpectralNorm(nnx.Linear(6, 4, rngs=rngs()), rngs=rngs())
    x = sample((2, 6))
    assert_allclose(norm(x), plain(x), rtol=1e-5, atol=1e-6)


def test_spectral_norm_leaves_what_starts_at_zero_as_flax_does():
    x, later = sample((2, 6)), 1e-3 * sample((6, 4))
    for package in (nnx, ours):
        zeros = nnx.initializers.zeros_init()
        layer = nnx.Linear(6, 4, kernel_init=zeros, rngs=rngs())
        norm = package.SpectralNorm(layer, rngs=rngs())
        norm(x)
        layer.kernel[...] = later
        assert_allclose(norm(x), x @ later, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"feature_axes": None}, {"feature_axes": (0, 1)}, {"use_scale": False}],
    ids=str,
)
def test_weight_norm_is_flaxs(kwargs):
    x = sample((2, 6))
    theirs, mine = (
        package.WeightNorm(nnx.Linear(6, 4, rngs=rngs()), rngs=rngs(), **kwargs)
        for package in (nnx, ours)
    )
    assert_trees_close(pure(mine), pure(theirs))
    assert_allclose(mine(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_layers_that_are_built_next_begin_as_with_flaxs():
    def next_kernel(package):
        stream = rngs()
        package.WeightNorm(nnx.Linear(6, 4, rngs=stream), rngs=stream)
        return nnx.Linear(4, 2, rngs=stream).kernel[...]

    np.testing.assert_array_equal(next_kernel(ours), next_kernel(nnx))


def test_random_lengths_differ_from_kernel_to_kernel():
    model = nnx.List([nnx.Linear(6, 4, rngs=rngs()) for _ in range(2)])
    init = nnx.initializers.normal()
    norm = ours.WeightNorm(model, scale_init=init, rngs=rngs())
    first, second = norm.scales.values()
    assert not np.any(first[...] == second[...])


def test_spectral_norm_obeys_train_and_eval():
    layer = nnx.Linear(6, 4, rngs=rngs())
    norm, x = ours.SpectralNorm(layer, rngs=rngs()), sample((8, 6))
    norm.eval()
    before = pure(norm)
    norm(x)
    assert_trees_close(pure(norm), before)
    norm.train()
    norm(x)
    path = ("kernel", "sigma")
    assert pure(norm)["batch_stats"][path] != before["batch_stats"][path]


def test_spectral_norm_takes_a_traced_flag():
    norms = [ours.SpectralNorm(nnx.Linear(6, 4, rngs=rngs()), rngs=rngs())] * 2
    norms = [nnx.clone(norm) for norm in norms]

    def run(norm, update):
        return norm(sample(), update_stats=update)

    for update in (True, False):
        y = nnx.jit(run)(norms[0], jnp.array(update))
        assert_allclose(y, run(norms[1], update), rtol=1e-5, atol=1e-6)
        assert_trees_close(pure(norms[0]), pure(norms[1]), rtol=1e-5)


def test_a_layer_that_fails_keeps_its_kernel():
    layer = nnx.Linear(6, 4, rngs=rngs())
    norm, kernel = ours.WeightNorm(layer, rngs=rngs()), layer.kernel[...]
    with pytest.raises(TypeError):
        norm(sample((2, 5)))
    assert_allclose(layer.kernel[...], kernel)


def test_gradients_reach_the_kernels():
    """As in linen, where the kernel is a parameter that is normalized on its way."""
    x, layer = sample((2, 6)), nnx.Linear(6, 4, use_bias=False, rngs=rngs())
    norm = ours.WeightNorm(layer, rngs=rngs())

    def loss(norm):
        return jnp.sum(norm(x) ** 3)

    grads = nnx.to_pure_dict(nnx.grad(loss)(norm))

    def plain(kernel, scale):
        kernel = kernel / jnp.linalg.norm(kernel, axis=0)
        return jnp.sum((x @ (kernel * scale)) ** 3)

    expected = jax.grad(plain, (0, 1))(layer.kernel[...], jnp.ones(4))
    assert_allclose(grads["layer_instance"]["kernel"], expected[0], rtol=1e-3)
    assert_allclose(grads["scales"][("kernel",)], expected[1], rtol=1e-4)


def test_a_layer_that_gained_a_parameter():
    layer = nnx.Linear(6, 4, rngs=rngs())
    weight = ours.WeightNorm(layer, variable_filter=nnx.Param, rngs=rngs())
    spectral = ours.SpectralNorm(layer, rngs=rngs())
    layer.kernel_too = nnx.Param(jnp.ones((6, 4)))
    for norm in (spectral, weight):
        with pytest.raises(ValueError, match="the parameters of the layer must stay"):
            norm(sample((2, 6)))
