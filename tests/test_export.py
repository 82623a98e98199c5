"""Programs that are exported for a batch of any size."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxnorm as jn

X = np.random.default_rng(0).normal(3, 2, (8, 6)).astype(np.float32)
pytestmark = pytest.mark.usefixtures("platform")


def batch(x):
    return jn.batch_norm(x, jn.init_stats(6), training=True)


NORMS = {
    "batch": batch,
    "batch, weighted": lambda x: jn.batch_norm(
        x, jn.init_stats(6), training=True, weights=x[..., :1] > -1
    ),
    "moments, weighted": lambda x: jn.compute_moments(
        x, (0, 1), weights=x[0, :, :1] > -1
    ),
    "evaluation": lambda x: jn.batch_norm(x, jn.init_stats(6), training=False),
    "layer": jn.layer_norm,
    "rms": jn.rms_norm,
    "group": lambda x: jn.group_norm(x, num_groups=2),
    "instance": jn.instance_norm,
    "moments": lambda x: jn.merge_moments(
        jn.compute_moments(x, -1), jn.compute_moments(2 * x, -1)
    ),
    "gradient of batch": jax.grad(lambda x: jnp.sum(batch(x)[0] ** 3)),
    "gradient of layer": jax.grad(lambda x: jnp.sum(jn.layer_norm(x) ** 3)),
}


def test_weights_of_a_square_of_symbols():
    """Those of features are told from those of rows, though neither size is known."""
    (b,) = export.symbolic_shape("b")
    square, row = (jax.ShapeDtypeStruct((b,) * n, jnp.float32) for n in (2, 1))

    @jax.jit
    def normalize(x, weights):
        return jn.layer_norm(x, weights=weights)

    exported = export.export(normalize)(square, row)
    x, weights = X[:6], jnp.asarray([1.0, 0, 2, 1, 0.5, 1])
    chex.assert_trees_all_close(
        exported.call(x, weights), normalize(x, weights), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="must not fit both its first and its last"):
        export.export(jax.jit(lambda x, w: jn.layer_norm(x, axis=0, weights=w)))(
            square, row
        )


@pytest.mark.parametrize("name", NORMS)
def test_the_sizes_of_batch_and_space_may_be_symbols(name):
    sizes = export.symbolic_shape("b, n, 6")
    norm = jax.jit(NORMS[name])
    exported = export.export(norm)(jax.ShapeDtypeStruct(sizes, jnp.float32))
    for shape in ((2, 3, 6), (40, 5, 6)):
        x = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
        for got, expected in zip(
            jax.tree.leaves(exported.call(x)), jax.tree.leaves(norm(x)), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("f", "state"),
    [
        (lambda stats: jn.batch_norm(X, stats, training=True), jn.init_stats(6)),
        (lambda moments: jn.merge_moments(moments, moments), jn.compute_moments(X, 0)),
        (
            lambda stats: jn.spectral_norm(X, stats, training=True),
            jn.init_spectral_stats(jax.random.key(0), 6),
        ),
    ],
    ids=["NormStats", "Moments", "SpectralStats"],
)
def test_state_goes_to_a_file_and_back(f, state):
    exported = export.export(jax.jit(f))(state)
    again = export.deserialize(exported.serialize(vjp_order=1))
    chex.assert_trees_all_equal(again.call(state), jax.jit(f)(state))
    assert type(jax.tree.unflatten(again.in_tree, again.in_avals)[0][0]) is type(state)


def test_groups_of_a_symbolic_number_of_channels():
    norm = jax.jit(lambda x: jn.group_norm(x, num_groups=2))
    shape = export.symbolic_shape("b, c")
    with pytest.raises(ValueError, match=r"for c channels; make it a multiple in name"):
        export.export(norm)(jax.ShapeDtypeStruct(shape, jnp.float32))
    shape = export.symbolic_shape("b, 2*c")
    exported = export.export(norm)(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_allclose(exported.call(x), norm(x), rtol=1e-5, atol=1e-5)


def test_running_statistics_start_with_a_symbolic_number_of_features():
    def start(x):
        return jn.init_stats(x.shape[-1])

    shape = export.symbolic_shape("b, c")
    exported = export.export(jax.jit(start))(jax.ShapeDtypeStruct(shape, jnp.float32))
    chex.assert_trees_all_equal(exported.call(jnp.ones((2, 5))), jn.init_stats(5))


def test_running_statistics_of_a_symbolic_number_of_features():
    def train(x, mean, var, weight):
        return jn.batch_norm(x, jn.NormStats(mean, var, weight), training=True)

    b, n = export.symbolic_shape("b, n")
    shapes = (b, n), (n,), (n,), ()
    types = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    exported = export.export(jax.jit(train))(*types)
    x = np.random.default_rng(0).normal(3, 2, (8, 5)).astype(np.float32)
    args = x, *jn.init_stats(5)
    chex.assert_trees_all_close(exported.call(*args), train(*args), rtol=1e-5)


def test_the_number_of_features_may_be_a_symbol():
    def evaluate(x, mean, scale):
        return jn.normalize(x, mean, 1 + mean**2, scale)

    (n,) = export.symbolic_shape("n")
    x, feature = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, n), (n,)))
    exported = export.export(jax.jit(evaluate))(x, feature, feature)
    for size in (3, 80):
        x, mean = (
            np.arange(4.0 * size, dtype=np.float32).reshape(4, size),
            np.ones(size),
        )
        args = x, mean.astype(np.float32), np.full(size, 2, np.float32)
        np.testing.assert_allclose(
            exported.call(*args), evaluate(*args), rtol=1e-5, atol=1e-5
        )
