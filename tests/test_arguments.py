"""Wrong arrays and axes: which error, and its words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm import axes
from tests.wrong_calls import STATS, X, batch_norm, check_error

SQUARE, CUBE = jnp.ones((6, 6)), jnp.ones((3, 3, 3))

ERRORS = {
    "integer input": (
        lambda: batch_norm(jnp.ones((4, 6), jnp.int32)),
        TypeError,
        "batch_norm: x must have a floating-point or complex dtype. Received int32 "
        "with shape (4, 6); convert it first, for example x.astype(jnp.float32).",
    ),
    "wrong rank": (
        lambda: batch_norm(jnp.ones(())),
        ValueError,
        "batch_norm: feature_axis must lie in [0, 0) for an input of rank 0. Received "
        "feature_axis=-1; a scalar has none.",
    ),
    "axis out of range": (
        lambda: jn.layer_norm(X, axis=(0, 2)),
        ValueError,
        "layer_norm: axis must lie in [-2, 2) for an input of rank 2. Received "
        "axis=(0, 2); choose an axis that the input has.",
    ),
    "axis given twice": (
        lambda: jn.rms_norm(X, axis=(1, -1)),
        ValueError,
        "rms_norm: axis must name each axis once. Received axis=(1, -1) for an input "
        "of rank 2; remove the repeated axis.",
    ),
    "axis that is a flag": (
        lambda: jn.layer_norm(X, axis=True),
        TypeError,
        "layer_norm: axis must be an integer or a sequence of integers. Received "
        "axis=True; count axes from 0, or from -1 backwards.",
    ),
    "axis of another type": (
        lambda: jn.layer_norm(X, axis=1.5),
        TypeError,
        "layer_norm: axis must be an integer or a sequence of integers. Received "
        "axis=1.5; count axes from 0, or from -1 backwards.",
    ),
    "scale of another size": (
        lambda: batch_norm(X, STATS, jnp.ones(4)),
        ValueError,
        "batch_norm: scale must have shape (6,), the size of axis 1 of x, or the "
        "rank of x and broadcast to it. Received scale with shape (4,) for x with "
        "shape (4, 6); pass one value for each feature, or name other axes.",
    ),
    "scale of one value": (
        lambda: jn.layer_norm(X, jnp.ones(1)),
        ValueError,
        "layer_norm: scale must have shape (6,), the size of axis 1 of x, or the rank "
        "of x and broadcast to it. Received scale with shape (1,) for x with shape "
        "(4, 6); pass one value for each feature, or name other axes.",
    ),
    "a scale for every example": (
        lambda: jn.layer_norm(jnp.ones((2, 5, 8)), jnp.ones((2, 8))),
        ValueError,
        "layer_norm: scale must have shape (8,), the size of axis 2 of x, or the rank "
        "of x and broadcast to it. Received scale with shape (2, 8) for x with shape "
        "(2, 5, 8); one for every example has shape (2, 1, 8).",
    ),
    "a scale for every example, channels first": (
        lambda: jn.instance_norm(jnp.ones((4, 8, 8)), jnp.ones((4, 8)), feature_axis=1),
        ValueError,
        "instance_norm: scale must have shape (8,), the size of axis 1 of x, or the "
        "rank of x and broadcast to it. Received scale with shape (4, 8) for x with "
        "shape (4, 8, 8); one for every example has shape (4, 8, 1).",
    ),
    "scale of the rank of x that does not broadcast": (
        lambda: jn.layer_norm(X, jnp.ones((2, 6))),
        ValueError,
        "layer_norm: scale must have shape (6,), the size of axis 1 of x, or the rank "
        "of x and broadcast to it. Received scale with shape (2, 6) for x with shape "
        "(4, 6); pass one value for each feature, or name other axes.",
    ),
    "scale of another shape": (
        lambda: jn.layer_norm(jnp.ones((2, 3, 4)), jnp.ones((4, 3)), axis=(1, 2)),
        ValueError,
        "layer_norm: scale must have shape (3, 4), the sizes of axes (1, 2) of x, or "
        "the rank of x and broadcast to it. Received scale with shape (4, 3) for x "
        "with shape (2, 3, 4); reshape scale, or name other axes.",
    ),
    "bias of another size": (
        lambda: jn.instance_norm(jnp.ones((2, 3, 4)), None, jnp.ones(3)),
        ValueError,
        "instance_norm: bias must have shape (4,), the size of axis 2 of x, or the "
        "rank of x and broadcast to it. Received bias with shape (3,) for x with shape "
        "(2, 3, 4); pass one value for each feature, or name axis 1, which it fits.",
    ),
    "scale of one of several axes": (
        lambda: jn.layer_norm(jnp.ones((2, 3, 4)), jnp.ones(4), axis=(1, 2)),
        ValueError,
        "layer_norm: scale must have shape (3, 4), the sizes of axes (1, 2) of x, or "
        "the rank of x and broadcast to it. Received scale with shape (4,) for x with "
        "shape (2, 3, 4); one that varies along axis 2 alone has shape (1, 1, 4).",
    ),
    "bool scale": (
        lambda: jn.layer_norm(X, jnp.ones(6, bool)),
        TypeError,
        "layer_norm: scale must hold numbers. Received bool; convert it first, for "
        "example scale.astype(jnp.float32).",
    ),
    "complex scale": (
        lambda: jn.layer_norm(X, jnp.ones(6, jnp.complex64)),
        TypeError,
        "layer_norm: scale must be real for real x. Received scale of complex64 for x "
        "of float32; convert x to a complex dtype.",
    ),
    "mean of another size": (
        lambda: jn.normalize(X, jnp.ones(5), jnp.ones(6)),
        ValueError,
        "normalize: mean must have shape (6,), the size of axis 1 of x, or the "
        "rank of x and broadcast to it. Received mean with shape (5,) for x with shape "
        "(4, 6); pass one value for each feature, or name other axes.",
    ),
    "weights that do not broadcast": (
        lambda: batch_norm(weights=jnp.ones(4)),
        ValueError,
        "batch_norm: weights must broadcast to x. Received weights with shape (4,) for "
        "x with shape (4, 6); a mask of the batch has shape (4, 1).",
    ),
    "weights of more axes than x": (
        lambda: jn.layer_norm(X, weights=jnp.ones((4, 6, 1))),
        ValueError,
        "layer_norm: weights must broadcast to x. Received weights with shape "
        "(4, 6, 1) for x with shape (4, 6); a mask of the batch has shape (4, 1).",
    ),
    "weights of the first axes": (
        lambda: jn.layer_norm(jnp.ones((4, 10, 6)), weights=jnp.ones((4, 10), bool)),
        ValueError,
        "layer_norm: weights must broadcast to x. Received weights with shape (4, 10) "
        "for x with shape (4, 10, 6); those of the first axes have shape (4, 10, 1).",
    ),
    "a kernel of features alone": (
        lambda: jn.weight_standardization(X, feature_axis=(0, 1)),
        ValueError,
        "weight_standardization: at least one axis must be reduced to have a "
        "statistic. Received kernel with shape (4, 6) and no axis left to reduce; keep "
        "an axis out of feature_axis.",
    ),
    "weights of rows that are as many as the features": (
        lambda: batch_norm(SQUARE, weights=jnp.array([1, 1, 0, 0, 0, 0], bool)),
        ValueError,
        "batch_norm: weights with fewer axes than x must not fit both its first "
        "and its last. Received weights with shape (6,) for x with shape (6, 6); "
        "reshape to (6, 1) or to (1, 6).",
    ),
    "weights of rows for moments": (
        lambda: jn.compute_moments(SQUARE, 0, weights=jnp.ones(6)),
        ValueError,
        "compute_moments: weights with fewer axes than x must not fit both its first "
        "and its last. Received weights with shape (6,) for x with shape (6, 6); "
        "reshape to (6, 1) or to (1, 6).",
    ),
    "weights of images that are as many as the channels": (
        lambda: jn.instance_norm(jnp.ones((6, 2, 2, 6)), weights=jnp.ones(6)),
        ValueError,
        "instance_norm: weights with fewer axes than x must not fit both its first "
        "and its last. Received weights with shape (6,) for x with shape (6, 2, 2, 6); "
        "reshape to (6, 1, 1, 1) or to (1, 1, 1, 6).",
    ),
    "weights of columns that are as many as the rows": (
        lambda: jn.layer_norm(SQUARE, axis=0, weights=jnp.ones(6)),
        ValueError,
        "layer_norm: weights with fewer axes than x must not fit both its first and "
        "its last. Received weights with shape (6,) for x with shape (6, 6); reshape "
        "to (6, 1) or to (1, 6).",
    ),
    "weights of rows and times that are as many as the features": (
        lambda: jn.compute_moments(CUBE, (0, 1), weights=jnp.ones((3, 3))),
        ValueError,
        "compute_moments: weights with fewer axes than x must not fit both its first "
        "and its last. Received weights with shape (3, 3) for x with shape (3, 3, 3); "
        "reshape to (3, 3, 1) or to (1, 3, 3).",
    ),
    "weights of rows that fit times as well": (
        lambda: jn.compute_moments(CUBE, (0, 1), weights=jnp.ones((3, 1))),
        ValueError,
        "compute_moments: weights with fewer axes than x must not fit both its first "
        "and its last. Received weights with shape (3, 1) for x with shape (3, 3, 3); "
        "reshape to (3, 1, 1) or to (1, 3, 1).",
    ),
    "weights of higher rank": (
        lambda: jn.group_norm(X, num_groups=2, weights=jnp.ones((1, 4, 6))),
        ValueError,
        "group_norm: weights must broadcast to x. Received weights with shape "
        "(1, 4, 6) for x with shape (4, 6); a mask of the batch has shape (4, 1).",
    ),
    "negative weights": (
        lambda: jn.layer_norm(X, weights=-jnp.ones(6)),
        ValueError,
        "layer_norm: weights must not be negative, and must be finite. Received "
        "weights from -1.0 to -1.0; a weight of 0 leaves an element out.",
    ),
    "weights that are not finite": (
        lambda: jn.layer_norm(X, weights=jnp.array([1, 2, 0, 1, 1, jnp.nan])),
        ValueError,
        "layer_norm: weights must not be negative, and must be finite. Received "
        "weights from nan to nan; a weight of 0 leaves an element out.",
    ),
    "complex weights": (
        lambda: jn.layer_norm(X, weights=jnp.ones(6, jnp.complex64)),
        TypeError,
        "layer_norm: weights must be bool or real. Received complex64; pass "
        "weights.real.",
    ),
    "group norm over two axes": (
        lambda: jn.group_norm(X, num_groups=1, feature_axis=(0, 1)),
        ValueError,
        "group_norm: feature_axis must be one axis, that of the channels. Received "
        "feature_axis=(0, 1); choose one, or merge them with x.reshape.",
    ),
    "empty batch": (
        lambda: batch_norm(jnp.ones((0, 6))),
        ValueError,
        "batch_norm: the reduced axes (0,) must hold at least one element. Received x "
        "with shape (0, 6); skip what is empty, or pad it and pass weights=0.",
    ),
    "nothing to reduce": (
        lambda: jn.instance_norm(X),
        ValueError,
        "instance_norm: at least one axis must be reduced to have a statistic. "
        "Received x with shape (4, 6) and no axis left to reduce; add a batch or a "
        "spatial axis, or name a device axis.",
    ),
    "x and stats in each other's place": (
        lambda: jn.batch_norm(STATS, X, training=True),
        TypeError,
        "batch_norm: x must be one array. Received NormStats that holds arrays; x "
        "comes first.",
    ),
    "a tuple of arrays, which could be stacked": (
        lambda: jn.layer_norm((X, X)),
        TypeError,
        "layer_norm: x must be one array. Received tuple that holds arrays; pass one "
        "of them, or join them by jnp.stack.",
    ),
    "what batch_norm returned": (
        lambda: jn.layer_norm(batch_norm(X)),
        TypeError,
        "layer_norm: x must be one array. Received tuple that holds arrays; take them "
        "apart, as in x, stats = ..., and pass the first.",
    ),
    "a ragged list": (
        lambda: jn.layer_norm([[1.0, 2.0], [3.0]]),
        TypeError,
        "layer_norm: x must be an array. Received list; pass anything that "
        "jnp.asarray accepts.",
    ),
    "no x": (
        lambda: jn.layer_norm(None),
        TypeError,
        "layer_norm: x must be an array. Received NoneType; pass anything that "
        "jnp.asarray accepts.",
    ),
    "weights that are no array": (
        lambda: jn.layer_norm(X, weights="all"),
        TypeError,
        "layer_norm: weights must be an array. Received str; pass anything that "
        "jnp.asarray accepts.",
    ),
    "no mean": (
        lambda: jn.normalize(X, None, 1.0),
        TypeError,
        "normalize: mean and var must be arrays. Received mean=None; 0 and 1 leave x "
        "as it is.",
    ),
    "complex variance": (
        lambda: jn.normalize(X.astype(jnp.complex64), 0.0, jnp.complex64(1)),
        TypeError,
        "normalize: a variance is real, of complex x too. Received var of complex64; "
        "pass var.real.",
    ),
    "bytes in another order": (
        lambda: jn.layer_norm(np.ones((2, 3), ">f4")),
        TypeError,
        "layer_norm: x must have a dtype that JAX knows. Received '>f4' with shape "
        "(2, 3); convert it to one that jax.numpy names, such as float32.",
    ),
    "a traced axis": (
        lambda: jax.make_jaxpr(lambda axis: jn.layer_norm(X, axis=axis))(1),
        TypeError,
        "layer_norm: axis must be an integer or a sequence of integers. Received "
        "axis=JitTracer(~int32[]); make it a static argument of jit.",
    ),
    "random keys as weights": (
        lambda: jn.rms_norm(X, weights=jax.random.key(0)),
        TypeError,
        "rms_norm: weights must be bool or real. Received key<fry>; pass a mask, or "
        "numbers.",
    ),
    "a scale that no dtype holds": (
        lambda: jn.layer_norm(X, 2**40),
        ValueError,
        "layer_norm: scale must fit the dtype that JAX gives it. Received "
        "1099511627776; pass a float.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    check_error(*ERRORS[name])


def test_evaluation_of_an_empty_batch_is_empty():
    y, _ = batch_norm(jnp.ones((0, 6)), training=False)
    assert y.shape == (0, 6)


def test_axes_are_sorted_and_non_negative():
    assert axes.canonicalize_axes((-1, 0), 3, caller="f", name="axis") == (0, 2)
    assert axes.canonicalize_axes(np.int64(-2), 3, caller="f", name="axis") == (1,)
    array = np.array([-1, 0])
    assert axes.canonicalize_axes(array, 3, caller="f", name="axis") == (0, 2)


@pytest.mark.parametrize(
    ("shape", "feature_axis", "expected"),
    [
        ((2, 4, 4, 3), -1, (1, 2)),
        ((2, 3, 4, 4), 1, (2, 3)),
        ((3, 4, 4), 0, (1, 2)),
        ((2, 3), -1, ()),
    ],
)
def test_spatial_axes_leave_out_batch_and_features(shape, feature_axis, expected):
    _, spatial = axes.spatial_axes(feature_axis, shape, caller="f")
    assert spatial == expected


def test_lists_of_numbers_are_arrays():
    """Also of traced numbers; and weights may be a list of rows."""
    ones = np.ones(2)
    for value in ([[1.0, 2.0]], ((np.float32(1), 2.0),)):
        got = jn.layer_norm(value, [1.0, 1.0], weights=[ones])
        np.testing.assert_array_equal(got, jn.layer_norm(np.array([[1.0, 2.0]], "f4")))
    traced = jax.jit(lambda a, b: jn.layer_norm([a, b]))(1.0, 2.0)
    np.testing.assert_allclose(traced, [-1, 1], rtol=1e-4)
