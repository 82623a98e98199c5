"""Moments that a GPU measures in parts, and how parts are merged."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm import parts, shifted
from jaxnorm.reduction import Reduction
from tests import reference
from tests.reference import moments64
from tests.spreading import each_kind_of_axes, put

RNG = np.random.default_rng(0)
on_gpu = pytest.mark.parametrize("platform", ["gpu"], indirect=True)
on_gpus = pytest.mark.parametrize("platform", ["gpu", "gpus"], indirect=True)


@pytest.mark.parametrize(
    ("shape", "axis", "split"),
    [
        ((4096, 8), (0,), (0, 32)),
        ((32, 7, 7, 8), (0, 1, 2), (0, 16)),
        ((8, 14, 14, 8), (0, 1, 2), (1, 14)),  # of eight images the parts are large
        ((4, 251, 8), (0, 1), (0, 4)),  # larger, but there are no others
        ((8, 32, 32, 8), (1, 2), (1, 8)),
        ((8, 14, 14, 8), (1, 2), (1, 2)),
        ((8, 7, 7, 8), (1, 2), None),  # few rows as they are
        ((8, 64, 65, 8), (1, 2), None),  # so many that XLA splits them
        ((2, 1009, 8), (1,), None),  # a prime number
        ((8, 512), (1,), None),  # a row
        ((80, 7, 7, 8), (0, 1, 2), (0, 40)),  # more parts than are gathered of devices
        ((256, 8), (0, 1), None),
        ((0, 8), (0,), None),
    ],
)
def test_how_rows_are_split_on_a_gpu(shape, axis, split):
    assert parts._split_on_gpu(jnp.ones(shape), Reduction(axis)) == split


@pytest.mark.parametrize(
    ("shape", "axis", "devices", "split"),
    [
        ((4096, 8), (0,), 2, None),  # the first axis is spread
        ((16, 16, 16, 8), (0, 1, 2), 8, (1, 16)),  # and the others are not
        ((8, 32, 32, 8), (1, 2), 16, (1, 16)),  # or evenly, over some of the devices
        ((8, 28, 28, 8), (1, 2), 2, (1, 14)),
        ((8, 28, 28, 8), (1, 2), 8, (1, 28)),
        ((8, 14, 14, 8), (1, 2), 8, (1, 2)),
        ((8, 128, 8), (1,), 128, None),  # parts of single rows
    ],
)
def test_how_rows_are_split_on_several_gpus(shape, axis, devices, split):
    x = jnp.ones(shape)
    assert parts._split_on_gpu(x, Reduction(axis), devices) == split


@each_kind_of_axes
def test_gpus_measure_parts_of_what_each_has(mode):
    """Of its rows, and of each of its examples."""
    images = np.ones((32, 16, 16, 8), np.float32)
    x = put(mode, images, ("data", "model"))
    scale = np.ones(8, np.float32)

    def text(f):
        return jax.jit(f).trace(x).lower(lowering_platforms=("cuda",)).as_text()

    batch = text(lambda x: jn.batch_norm(x, jn.init_stats(8), training=True)[0])
    assert "tensor<8x4x8x2x16x8xf32>" in batch
    group = text(lambda x: jn.group_norm(x, scale, num_groups=2))
    assert "tensor<32x8x2x16x8xf32>" in group


@pytest.mark.parametrize(("channels", "expected"), [(1, 1), (3, 4)])
def test_groups_are_of_the_same_channels_after_a_split(channels, expected):
    over = Reduction((0, 2, 4), channel_groups=(channels, 5))
    within = parts._within(over, 2)
    assert within.axis == (0, 3, 5) and within.whole_axis == 3
    assert within.channel_groups == (expected, 5)


@on_gpu
def test_more_parts_than_are_gathered_of_devices(platform):
    x = RNG.normal(1e3, 2, (80, 7, 7, 3)).astype(np.float32)
    measure = jax.jit(partial(jn.compute_moments, axis=(0, 1, 2)))
    assert "tensor<40x2x7x7x3xf32>" in measure.lower(x).as_text()
    count, expected, var = moments64(x, (0, 1, 2))
    _, mean, m2 = measure(x)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(m2, var * count, rtol=2e-6)


ROWS = RNG.normal(1e3, 2, (32, 64, 6)).astype(np.float32)
WEIGHTS_OF_ROWS = {
    "none": None,
    "a mask": RNG.uniform(size=(32, 64, 1)) > 0.7,
    "of features": RNG.uniform(0.5, 2, (1, 1, 6)).astype(np.float32),
    "of elements": RNG.uniform(0.5, 2, (32, 64, 6)).astype(np.float32),
    "the same for all": np.arange(64, dtype=np.float32).reshape(1, 64, 1) % 3,
    "none in some parts": (np.arange(32) % 9 < 4)[:, None, None],
}


@on_gpus
@pytest.mark.parametrize("name", WEIGHTS_OF_ROWS)
def test_parts_on_a_gpu_are_merged_by_their_weights(name, platform):
    axis, weights = (0, 1), WEIGHTS_OF_ROWS[name]
    measure = jax.jit(partial(jn.compute_moments, axis=axis))
    assert "stablehlo.reshape %arg0 : (tensor<32x64x6xf32>) -> tensor<" in (
        measure.lower(ROWS).as_text()
    )
    count, mean, m2 = measure(ROWS, weights=weights)
    total, expected, var = moments64(ROWS, axis, weights)
    np.testing.assert_allclose(np.broadcast_to(count, (6,)), total, rtol=1e-6)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(m2, var * total, rtol=2e-6)


@on_gpu
def test_parts_of_another_axis_than_the_first(platform):
    x = RNG.normal(1e3, 2, (8, 14, 14, 3)).astype(np.float32)
    weights = RNG.uniform(size=(8, 14, 1, 1)).astype(np.float32)
    measure = jax.jit(partial(jn.compute_moments, axis=(0, 1, 2)))
    assert "tensor<8x14x1x14x3xf32>" in measure.lower(x).as_text()
    for given in (None, weights):
        count, mean, m2 = measure(x, weights=given)
        total, expected, var = moments64(x, (0, 1, 2), given)
        np.testing.assert_allclose(np.broadcast_to(count, (3,)), total, rtol=1e-6)
        np.testing.assert_allclose(mean, expected, rtol=1e-6)
        np.testing.assert_allclose(m2, var * total, rtol=2e-6)


@on_gpus
@pytest.mark.parametrize("features", [(1, 4), (4, 1)])
def test_groups_of_channels_in_parts(features, platform):
    """All of the channels, or each of them; also of an array that is mapped over."""
    groups, size = features
    x = RNG.normal(1e3, 2, (2, 8, 64, groups * size)).astype(np.float32)
    scale = np.arange(1, groups * size + 1, dtype=np.float32)

    def norm(x):
        return jn.group_norm(x, scale, num_groups=groups, eps=1e-6)

    expected = reference.normalize(
        np, x.astype(np.float64), scale, None, axes=(1, 2, 4), groups=groups, eps=1e-6
    )
    np.testing.assert_allclose(jax.jit(norm)(x), expected, atol=1e-5)
    mapped = jax.jit(jax.vmap(lambda x: norm(x[None])[0]))(x)
    np.testing.assert_allclose(mapped, expected, atol=1e-5)


def test_parts_of_one_count_are_merged_as_others_are():
    shift, mean, m2 = RNG.uniform(1, 2, (3, 7, 5)).astype(np.float32)
    count = jnp.full((5,), 3.0)
    counts = jnp.broadcast_to(count, (7, 5))
    merged = shifted.merge(shifted.ShiftedMoments(counts, shift, mean, m2))
    alike = shifted.merge_alike(count, shift, mean, m2)
    np.testing.assert_allclose(alike.count, merged.count, rtol=1e-6)
    np.testing.assert_allclose(alike.m2, merged.m2, rtol=1e-6)
    np.testing.assert_allclose(
        alike.shift + alike.mean, merged.shift + merged.mean, rtol=1e-6
    )
