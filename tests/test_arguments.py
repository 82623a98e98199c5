"""Every wrong argument: which error, and its words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm import axes

X = jnp.ones((4, 6))
SQUARE, CUBE = jnp.ones((6, 6)), jnp.ones((3, 3, 3))
STATS = jn.init_stats(6)


def batch_norm(x=X, stats=STATS, *args, training=True, **kwargs):
    return jn.batch_norm(x, stats, *args, training=training, **kwargs)


ERRORS = {
    "eps is no number": (
        lambda: jn.layer_norm(X, eps=jnp.float32),
        TypeError,
        "layer_norm: eps must be one real number. Received eps=<class "
        "'jax.numpy.float32'>; the usual value is 1e-5.",
    ),
    "eps describes a number": (
        lambda: jn.layer_norm(X, eps=jax.ShapeDtypeStruct((), jnp.float32)),
        TypeError,
        "layer_norm: eps must be one real number. Received eps=ShapeDtypeStruct("
        "shape=(), dtype=float32); the usual value is 1e-5.",
    ),
    "eps is too large": (
        lambda: jn.layer_norm(X, eps=10**39),
        ValueError,
        "layer_norm: eps must be positive, or a constant input would be divided by "
        f"zero, and finite. Received eps={10**39}, which float32 cannot hold; the "
        "usual value is 1e-5.",
    ),
    "a masked number": (
        lambda: batch_norm(decay=np.ma.masked),
        TypeError,
        "batch_norm: decay must be one number in [0, 1], or None for the equal-weight "
        "average. Received decay=masked; the usual value is 0.99.",
    ),
    "ddof is no number": (
        lambda: batch_norm(ddof=[[0], [0, 1]]),
        ValueError,
        "batch_norm: ddof must be 0 (biased running variance) or 1 (unbiased, as in "
        "PyTorch). Received ddof=[[0], [0, 1]]; no other is defined here.",
    ),
    "ddof is a key": (
        lambda: batch_norm(ddof=jax.random.key(0)),
        ValueError,
        "batch_norm: ddof must be 0 (biased running variance) or 1 (unbiased, as in "
        f"PyTorch). Received ddof={jax.random.key(0)!r}; no other is defined here.",
    ),
    "activation is an array": (
        lambda: batch_norm(activation=np.ones(2)),
        ValueError,
        "batch_norm: activation must be None or one of relu, silu, gelu. Received "
        "activation=array([1., 1.]); apply others to the output.",
    ),
    "method is an array": (
        lambda: jn.merge_stats([STATS], method=np.ones(2)),
        ValueError,
        "merge_stats: method must be 'total_variance' or 'average'. Received "
        "method=array([1., 1.]); the first counts the spread of the means too.",
    ),
    "stacked is no flag": (
        lambda: jn.check_replicas(STATS, stacked=np.ones(2)),
        TypeError,
        "check_replicas: stacked must be True, False or a boolean scalar array. "
        "Received stacked with shape (2,); it says whether arrays have a leading axis "
        "of replicas, as pmap's have.",
    ),
    "statistics of no number": (
        lambda: jn.init_stats(6, dtype=object),
        TypeError,
        "init_stats: statistics are floating-point or complex numbers. Received "
        "dtype=object; the usual one is float32.",
    ),
    "prior_weight is too large": (
        lambda: jn.init_stats(6, prior_weight=1e39),
        ValueError,
        "init_stats: prior_weight must not be negative, and must be finite. Received "
        "prior_weight=1e+39, which float32 cannot hold; 0 ignores the initial values, "
        "1 is what PyTorch and Flax do.",
    ),
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
    "axis of another type": (
        lambda: jn.layer_norm(X, axis=1.5),
        TypeError,
        "layer_norm: axis must be an integer or a sequence of integers. Received "
        "axis=1.5; count axes from 0, or from -1 backwards.",
    ),
    "stats of another size": (
        lambda: batch_norm(stats=jn.init_stats(5)),
        ValueError,
        "batch_norm: stats must have shape (6,), the size of axis 1 of x. Received "
        "stats with shape (5,) for x with shape (4, 6); use jaxnorm.init_stats(6), or "
        "another feature_axis.",
    ),
    "stats of another axis": (
        lambda: batch_norm(jnp.ones((2, 3, 4, 5)), jn.init_stats(3)),
        ValueError,
        "batch_norm: stats must have shape (5,), the size of axis 3 of x. Received "
        "stats with shape (3,) for x with shape (2, 3, 4, 5); use "
        "jaxnorm.init_stats(5), or feature_axis=1.",
    ),
    "stats of two axes": (
        lambda: batch_norm(jnp.ones((2, 3, 4)), jn.init_stats(3), feature_axis=(1, 2)),
        ValueError,
        "batch_norm: stats must have shape (3, 4), the sizes of axes (1, 2) of x. "
        "Received stats with shape (3,) for x with shape (2, 3, 4); use "
        "jaxnorm.init_stats((3, 4)), or feature_axis=1.",
    ),
    "no stats": (
        lambda: batch_norm(stats=None),
        TypeError,
        "batch_norm: stats must be a NormStats. Received NoneType; start with "
        "jaxnorm.init_stats(num_features).",
    ),
    "real stats for complex input": (
        lambda: batch_norm(X.astype(jnp.complex64)),
        TypeError,
        "batch_norm: complex input has a complex mean. Received x of complex64 and "
        "stats.mean of float32; use jaxnorm.init_stats(..., dtype=complex64).",
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
    "scale and bias before the statistics": (
        lambda: batch_norm(X, jnp.ones(6), jnp.zeros(6)),
        TypeError,
        "batch_norm: stats must be a NormStats. Received ArrayImpl; it comes before "
        "scale and bias; start with jaxnorm.init_stats(num_features).",
    ),
    "bias of another size": (
        lambda: jn.instance_norm(jnp.ones((2, 3, 4)), None, jnp.ones(3)),
        ValueError,
        "instance_norm: bias must have shape (4,), the size of axis 2 of x, or the "
        "rank of x and broadcast to it. Received bias with shape (3,) for x with shape "
        "(2, 3, 4); pass one value for each feature, or name axis 1, which it fits.",
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
    "statistics that a checkpoint gave as a dictionary": (
        lambda: batch_norm(stats=STATS._asdict()),
        TypeError,
        "batch_norm: stats must be a NormStats. Received dict; "
        "jaxnorm.NormStats(**stats) puts its parts together.",
    ),
    "a mean and a variance for statistics": (
        lambda: batch_norm(stats=(jnp.zeros(6), jnp.ones(6))),
        TypeError,
        "batch_norm: stats must be a NormStats. Received tuple; "
        "jaxnorm.NormStats(*stats, weight=jnp.ones(())) puts its parts together.",
    ),
    "moments before statistics": (
        lambda: jn.update_stats(jn.compute_moments(X, 0), STATS),
        TypeError,
        "update_stats: stats must be a NormStats. Received Moments; "
        "update_stats(stats, moments) moves one by moments.",
    ),
    "a part of the statistics that is missing": (
        lambda: batch_norm(stats=STATS._replace(var=None)),
        TypeError,
        "batch_norm: stats.var must be an array. Received NoneType; pass anything that "
        "jnp.asarray accepts.",
    ),
    "statistics that are types": (
        lambda: batch_norm(stats=jax.eval_shape(lambda: STATS)),
        TypeError,
        "batch_norm: stats.mean must be an array. Received ShapeDtypeStruct; pass "
        "anything that jnp.asarray accepts.",
    ),
    "statistics of integers": (
        lambda: batch_norm(stats=STATS._replace(mean=jnp.zeros(6, int))),
        TypeError,
        "batch_norm: running statistics must be of a floating-point dtype. Received "
        "stats.mean of int32; convert it first, for example to float32.",
    ),
    "replicas of which one part is shorter": (
        lambda: jn.merge_stats([STATS._replace(var=jnp.ones(2))]),
        ValueError,
        "merge_stats: mean and var must have one shape, and weight that or none. "
        "Received (mean, var, weight) of shapes (6,), (2,), (); start with "
        "jaxnorm.init_stats(num_features).",
    ),
    "a kernel of features alone": (
        lambda: jn.weight_standardization(X, feature_axis=(0, 1)),
        ValueError,
        "weight_standardization: at least one axis must be reduced to have a "
        "statistic. Received kernel with shape (4, 6) and no axis left to reduce; keep "
        "an axis out of feature_axis.",
    ),
    "an eps of weight norm that is zero": (
        lambda: jn.weight_norm(X, eps=0.0),
        ValueError,
        "weight_norm: eps must be positive, or a constant input would be divided by "
        "zero, and finite. Received eps=0.0; the usual value is 1e-12.",
    ),
    "statistics that a checkpoint gave as a list": (
        lambda: jn.update_stats(list(STATS), None),
        TypeError,
        "update_stats: stats must be a NormStats. Received list; "
        "jaxnorm.NormStats(*stats) puts its parts together.",
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
    "decay above 1": (
        lambda: batch_norm(decay=1.1),
        ValueError,
        "batch_norm: decay must lie in [0, 1]: it is the weight of the old running "
        "value. Received decay=1.1; PyTorch's momentum=0.1 is 0.9 here, and None is "
        "the equal-weight average.",
    ),
    "decay that is not a number": (
        lambda: batch_norm(decay="slow"),
        TypeError,
        "batch_norm: decay must be one number in [0, 1], or None for the equal-weight "
        "average. Received decay='slow'; the usual value is 0.99.",
    ),
    "a decay in a list": (
        lambda: batch_norm(decay=[0.9]),
        TypeError,
        "batch_norm: decay must be one number in [0, 1], or None for the equal-weight "
        "average. Received decay=[0.9]; the usual value is 0.99.",
    ),
    "a decay for every feature": (
        lambda: jn.update_stats(STATS, jn.compute_moments(X, 0), decay=jnp.ones(6)),
        TypeError,
        "update_stats: decay must be one number in [0, 1], or None for the "
        "equal-weight average. Received decay with shape (6,); the usual value "
        "is 0.99.",
    ),
    "ddof of 2": (
        lambda: batch_norm(ddof=2),
        ValueError,
        "batch_norm: ddof must be 0 (biased running variance) or 1 (unbiased, as in "
        "PyTorch). Received ddof=2; no other is defined here.",
    ),
    "eps of 0": (
        lambda: jn.layer_norm(X, eps=0.0),
        ValueError,
        "layer_norm: eps must be positive, or a constant input would be divided by "
        "zero, and finite. Received eps=0.0; the usual value is 1e-5.",
    ),
    "eps that is a flag": (
        lambda: jn.layer_norm(X, eps=True),
        TypeError,
        "layer_norm: eps must be one real number. Received eps=True; the usual value "
        "is 1e-5.",
    ),
    "eps that is not a number": (
        lambda: jn.layer_norm(X, eps=jnp.nan),
        ValueError,
        "layer_norm: eps must be positive, or a constant input would be divided by "
        "zero, and finite. Received eps=nan; the usual value is 1e-5.",
    ),
    "infinite eps": (
        lambda: jn.layer_norm(X, eps=jnp.inf),
        ValueError,
        "layer_norm: eps must be positive, or a constant input would be divided by "
        "zero, and finite. Received eps=inf; the usual value is 1e-5.",
    ),
    "no eps": (
        lambda: jn.rms_norm(X, eps=None),
        TypeError,
        "rms_norm: eps must be one real number. Received eps=None; the usual value is "
        "1e-5.",
    ),
    "several eps": (
        lambda: jn.layer_norm(X, eps=jnp.ones((7, 1, 1))),
        TypeError,
        "layer_norm: eps must be one real number. Received eps with shape (7, 1, 1); "
        "the usual value is 1e-5.",
    ),
    "training that is no bool": (
        lambda: batch_norm(training=None),
        TypeError,
        "batch_norm: training must be True, False or a boolean scalar array. Received "
        "training=None; there is no default, so that nothing is evaluated with batch "
        "statistics, or trained with running ones, by accident.",
    ),
    "training left out": (
        lambda: jn.batch_norm(X, STATS),
        TypeError,
        "batch_norm() missing 1 required keyword-only argument: 'training'",
    ),
    "groups that do not divide": (
        lambda: jn.group_norm(X, num_groups=4),
        ValueError,
        "group_norm: num_groups must be positive and divide the number of channels. "
        "Received num_groups=4 for 6 channels; choose 3 or 6, or another "
        "feature_axis.",
    ),
    "no groups": (
        lambda: jn.group_norm(X, num_groups=0),
        ValueError,
        "group_norm: num_groups must be positive and divide the number of channels. "
        "Received num_groups=0 for 6 channels; choose 1, or another feature_axis.",
    ),
    "a number of groups that is no integer": (
        lambda: jn.group_norm(X, num_groups=2.0),
        TypeError,
        "group_norm: num_groups must be an integer. Received num_groups=2.0; pass a "
        "whole number, such as 32.",
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
    "complex output squeezed into a real dtype": (
        lambda: jn.layer_norm(X.astype(jnp.complex64), dtype=jnp.float32),
        TypeError,
        "layer_norm: dtype must be able to hold the output. Received dtype=float32 for "
        "an input of complex64; pass a complex dtype, or None for that of the input.",
    ),
    "integer output": (
        lambda: jn.layer_norm(X, dtype=jnp.int8),
        TypeError,
        "layer_norm: dtype must be able to hold the output. Received dtype=int8 for an "
        "input of float32; pass a floating-point dtype, or None for that of the input.",
    ),
    "unbound axis name": (
        lambda: batch_norm(axis_name="data"),
        ValueError,
        "batch_norm: axis_name must be bound by pmap, vmap or shard_map around the "
        "call. Received axis_name='data', which is not; bind it there, or leave "
        "axis_name out: under plain jit on sharded arrays statistics are global "
        "without it.",
    ),
    "unbound axis name in evaluation, inside jit": (
        lambda: jax.jit(lambda x: batch_norm(x, axis_name="i", training=False))(X),
        ValueError,
        "batch_norm: axis_name must be bound by pmap, vmap or shard_map around the "
        "call. Received axis_name='i', which is not; bind it there, or leave axis_name "
        "out: under plain jit on sharded arrays statistics are global without it.",
    ),
    "groups without an axis name": (
        lambda: batch_norm(axis_index_groups=[[0, 1]]),
        ValueError,
        "batch_norm: axis_index_groups needs axis_name, the axis it divides. Received "
        "axis_index_groups=[[0, 1]] and axis_name=None; name the axis, or leave the "
        "groups out.",
    ),
    "groups that do not cover the axis": (
        lambda: jax.vmap(
            lambda x: jn.compute_moments(
                x, 0, axis_name="i", axis_index_groups=[[0, 1], [2]]
            ),
            axis_name="i",
        )(X),
        ValueError,
        "compute_moments: axis_index_groups must be groups of equal size that hold "
        "every index of axis 'i' (size 4) once. Received [[0, 1], [2]]; name "
        "every index in one group, and as many in each.",
    ),
    "statistics of half precision": (
        lambda: jn.init_stats(6, dtype=jnp.bfloat16),
        TypeError,
        "init_stats: statistics need at least float32, or small updates are lost. "
        "Received dtype=bfloat16; the input may still be of half precision.",
    ),
    "an update of statistics of half precision": (
        lambda: batch_norm(stats=jax.tree.map(jnp.bfloat16, STATS)),
        TypeError,
        "batch_norm: running statistics need at least float32, or small updates are "
        "lost. Received stats.mean of bfloat16; leave them out where a model is "
        "converted to half precision.",
    ),
    "an update of a variance of half precision": (
        lambda: batch_norm(stats=STATS._replace(var=jnp.ones(6, jnp.bfloat16))),
        TypeError,
        "batch_norm: running statistics need at least float32, or small updates are "
        "lost. Received stats.var of bfloat16; leave them out where a model is "
        "converted to half precision.",
    ),
    "an update of a weight of half precision": (
        lambda: batch_norm(stats=STATS._replace(weight=jnp.float16(1))),
        TypeError,
        "batch_norm: running statistics need at least float32, or small updates are "
        "lost. Received stats.weight of float16; leave them out where a model is "
        "converted to half precision.",
    ),
    "complex stats for real input": (
        lambda: batch_norm(stats=jn.init_stats(6, dtype=jnp.complex64)),
        TypeError,
        "batch_norm: real input has a real mean. Received x of float32 and stats.mean "
        "of complex64; use jaxnorm.init_stats(...), or convert x to a complex dtype.",
    ),
    "x and stats in each other's place": (
        lambda: jn.batch_norm(STATS, X, training=True),
        TypeError,
        "batch_norm: x must be an array. Received NormStats; pass anything that "
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
    "a list of activations": (
        lambda: batch_norm(activation=["relu"]),
        ValueError,
        "batch_norm: activation must be None or one of relu, silu, gelu. Received "
        "activation=['relu']; apply others to the output.",
    ),
    "the function of an activation": (
        lambda: jn.group_norm(X, num_groups=2, activation=jax.nn.gelu),
        ValueError,
        "group_norm: activation must be None or one of relu, silu, gelu. Received "
        f"activation={jax.nn.gelu!r}; pass 'gelu'.",
    ),
    "the number of an axis for a name": (
        lambda: jn.layer_norm(X, axis_name=1),
        ValueError,
        "layer_norm: axis_name must name device axes, each once. Received axis_name=1; "
        "axes of the array have numbers, those of devices names.",
    ),
    "a name given twice": (
        lambda: jax.vmap(
            lambda x: jn.layer_norm(x, axis_name=("i", "i")), axis_name="i"
        )(X),
        ValueError,
        "layer_norm: axis_name must name device axes, each once. Received "
        "axis_name=('i', 'i'); remove what is repeated.",
    ),
    "bytes in another order": (
        lambda: jn.layer_norm(np.ones((2, 3), ">f4")),
        TypeError,
        "layer_norm: x must have a dtype that JAX knows. Received '>f4' with shape "
        "(2, 3); convert it to one that jax.numpy names, such as float32.",
    ),
    "a list of axis names": (
        lambda: batch_norm(axis_name=["data"]),
        TypeError,
        "batch_norm: axis_name must be one name, or a tuple of names. Received "
        "axis_name=['data']; tuple(...) makes one.",
    ),
    "several ddof": (
        lambda: batch_norm(ddof=np.array([0, 1])),
        ValueError,
        "batch_norm: ddof must be 0 (biased running variance) or 1 (unbiased, as in "
        "PyTorch). Received ddof=array([0, 1]); no other is defined here.",
    ),
    "a traced ddof": (
        lambda: jax.make_jaxpr(lambda ddof: batch_norm(ddof=ddof))(1),
        ValueError,
        "batch_norm: ddof must be 0 (biased running variance) or 1 (unbiased, as in "
        "PyTorch). Received ddof=JitTracer(~int32[]); make it a static argument of "
        "jit.",
    ),
    "a traced axis": (
        lambda: jax.make_jaxpr(lambda axis: jn.layer_norm(X, axis=axis))(1),
        TypeError,
        "layer_norm: axis must be an integer or a sequence of integers. Received "
        "axis=JitTracer(~int32[]); make it a static argument of jit.",
    ),
    "a traced number of groups": (
        lambda: jax.make_jaxpr(lambda n: jn.group_norm(X, num_groups=n))(1),
        TypeError,
        "group_norm: num_groups must be an integer. Received "
        "num_groups=JitTracer(~int32[]); make it a static argument of jit.",
    ),
    "replicas that a generator makes": (
        lambda: jn.merge_stats(STATS for _ in range(2)),
        TypeError,
        "merge_stats: stats must be one NormStats, or a sequence of them. Received "
        "generator; make a list of the replicas of one layer, and map merge_stats over "
        "the layers of a model.",
    ),
    "copies of a bare array that differ": (
        lambda: jn.check_replicas(jnp.array([1.0, 2.0]), stacked=True),
        ValueError,
        "check_replicas: replicas must agree to rtol=0.0 and atol=0.0. Received an "
        "array where replica 1 differs from replica 0 by 1; pool with axis_name, or "
        "merge them with jaxnorm.merge_stats.",
    ),
    "a dtype that does not exist": (
        lambda: jn.layer_norm(X, dtype="foo"),
        TypeError,
        "layer_norm: dtype must be a dtype, or the name of one. Received dtype='foo'; "
        "the usual one is float32.",
    ),
    "an array as dtype": (
        lambda: jn.init_stats(6, dtype=X),
        TypeError,
        "init_stats: dtype must be a dtype, or the name of one. Received dtype with "
        "shape (4, 6); the usual one is float32.",
    ),
    "random keys as weights": (
        lambda: jn.rms_norm(X, weights=jax.random.key(0)),
        TypeError,
        "rms_norm: weights must be bool or real. Received key<fry>; pass a mask, or "
        "numbers.",
    ),
    "an eps that is flushed to zero": (
        lambda: jn.layer_norm(X, eps=1e-45),
        ValueError,
        "layer_norm: eps must be positive, or a constant input would be divided by "
        "zero, and finite. Received eps=1e-45, which processors may take "
        "for zero; the usual value is 1e-5.",
    ),
    "moments that are none": (
        lambda: jn.update_stats(STATS, (1.0, jnp.zeros(6), jnp.ones(6))),
        TypeError,
        "update_stats: moments must be Moments(count, mean, m2). Received tuple; "
        "jaxnorm.compute_moments makes them from an array.",
    ),
    "no moments to merge": (
        lambda: jn.merge_moments(jn.compute_moments(X, 0), None),
        TypeError,
        "merge_moments: moments must be Moments(count, mean, m2). Received NoneType; "
        "jaxnorm.compute_moments makes them from an array.",
    ),
    "no axis to pool over": (
        lambda: jn.pool_moments(jn.compute_moments(X, 0), None),
        ValueError,
        "pool_moments: axis_name must name the axes to pool over. Received "
        "axis_name=None; leave the call out where there is one device.",
    ),
    "a weight of another shape": (
        lambda: batch_norm(stats=STATS._replace(weight=jnp.zeros(4))),
        ValueError,
        "batch_norm: mean and var must have one shape, and weight that or none. "
        "Received (mean, var, weight) of shapes (6,), (6,), (4,); start with "
        "jaxnorm.init_stats(num_features).",
    ),
    "statistics of which one part is shorter": (
        lambda: jn.update_stats(
            STATS._replace(var=jnp.ones(2)), jn.compute_moments(X, 0)
        ),
        ValueError,
        "update_stats: mean and var must have one shape, and weight that or none. "
        "Received (mean, var, weight) of shapes (6,), (2,), (); start with "
        "jaxnorm.init_stats(num_features).",
    ),
    "replicas of integers": (
        lambda: jn.merge_stats([STATS._replace(mean=jnp.zeros(6, int))]),
        TypeError,
        "merge_stats: running statistics must be of a floating-point dtype. Received "
        "stats.mean of int32; convert it first, for example to float32.",
    ),
    "negative prior weight": (
        lambda: jn.init_stats(6, prior_weight=-1),
        ValueError,
        "init_stats: prior_weight must not be negative, and must be finite. Received "
        "prior_weight=-1; 0 ignores the initial values, 1 is what PyTorch and Flax do.",
    ),
    "a prior weight that is no number": (
        lambda: jn.init_stats(6, prior_weight="none"),
        TypeError,
        "init_stats: prior_weight must be one real number, or one per feature. "
        "Received prior_weight='none'; 0 ignores the initial values.",
    ),
    "prior weights of other features": (
        lambda: jn.init_stats(6, prior_weight=jnp.zeros(4)),
        ValueError,
        "init_stats: prior_weight must be one real number, or one per feature. "
        "Received prior_weight with shape (4,); pass a number, or an array with shape "
        "(6,).",
    ),
    "a negative prior weight among others": (
        lambda: jn.init_stats(2, prior_weight=np.array([1.0, -1.0])),
        ValueError,
        "init_stats: prior_weight must not be negative, and must be finite. Received "
        "prior_weight=[ 1. -1.]; 0 ignores the initial values, 1 is what PyTorch and "
        "Flax do.",
    ),
    "a negative number of features": (
        lambda: jn.init_stats(-6),
        ValueError,
        "init_stats: num_features must not be negative. Received num_features=-6; "
        "pass the size of the feature axis, x.shape[-1].",
    ),
    "a number of features that is a flag": (
        lambda: jn.init_stats(True),
        TypeError,
        "init_stats: num_features must be an integer, or a sequence of them. Received "
        "bool; pass the size of the feature axis, x.shape[-1], or a tuple of sizes.",
    ),
    "a scale that no dtype holds": (
        lambda: jn.layer_norm(X, 2**40),
        ValueError,
        "layer_norm: scale must fit the dtype that JAX gives it. Received "
        "1099511627776; pass a float.",
    ),
    "moments of another shape": (
        lambda: jn.update_stats(STATS, jn.compute_moments(X, 1)),
        ValueError,
        "update_stats: moments must broadcast to the statistics. Received "
        "moments.mean with shape (4,) for stats with shape (6,); reduce every axis but "
        "the features.",
    ),
    "moments that keep too many axes": (
        lambda: jn.update_stats(STATS, jn.compute_moments(jnp.ones((2, 3, 6)), 0)),
        ValueError,
        "update_stats: moments must broadcast to the statistics. Received "
        "moments.mean with shape (3, 6) for stats with shape (6,); reduce every axis "
        "but the features.",
    ),
    "a count that does not fit its mean": (
        lambda: jn.merge_moments(
            jn.compute_moments(X, 0), jn.Moments(jnp.ones(5), jnp.ones(6), jnp.ones(6))
        ),
        ValueError,
        "merge_moments: moments of two sets must have shapes that broadcast. Received "
        "(count, mean, m2) of shapes ((), (6,), (6,)) and ((5,), (6,), (6,)); reduce "
        "the same axes of both.",
    ),
    "a complex m2": (
        lambda: jn.update_stats(STATS, jn.Moments(2.0, jnp.ones(6), jnp.ones(6) + 0j)),
        TypeError,
        "update_stats: a count and an m2 are real, of complex x too. Received "
        "moments.m2 of complex64; pass moments.m2.real.",
    ),
    "a complex running variance": (
        lambda: batch_norm(stats=STATS._replace(var=jnp.ones(6) + 0j)),
        TypeError,
        "batch_norm: a variance and a weight are real, of complex x too. Received "
        "stats.var of complex64; pass stats.var.real.",
    ),
    "a complex weight of running statistics": (
        lambda: jn.merge_stats([STATS._replace(weight=1 + 1j)]),
        TypeError,
        "merge_stats: a variance and a weight are real, of complex x too. Received "
        "stats.weight of complex64; pass stats.weight.real.",
    ),
    "moments of sets that do not go together": (
        lambda: jn.merge_moments(jn.compute_moments(X, 0), jn.compute_moments(X, 1)),
        ValueError,
        "merge_moments: moments of two sets must have shapes that broadcast. Received "
        "(count, mean, m2) of shapes ((), (6,), (6,)) and ((), (4,), (4,)); reduce the "
        "same axes of both.",
    ),
    "one replica where several are expected": (
        lambda: jn.merge_stats(STATS),
        ValueError,
        "merge_stats: the leaves of one NormStats must have a leading axis of "
        "replicas, and mean and var one of features. Received (mean, var, weight) of "
        "shapes (6,), (6,), (); pass a sequence of replicas, or axis_name inside pmap "
        "or shard_map.",
    ),
    "replicas with one weight for all of them": (
        lambda: jn.merge_stats(
            jn.NormStats(jnp.ones((8, 3)), jnp.ones((8, 3)), jnp.ones(1))
        ),
        ValueError,
        "merge_stats: the leaves of one NormStats must have a leading axis of "
        "replicas, and mean and var one of features. Received (mean, var, weight) of "
        "shapes (8, 3), (8, 3), (1,); pass a sequence of replicas, or axis_name inside "
        "pmap or shard_map.",
    ),
    "complex moments for real statistics": (
        lambda: jn.update_stats(
            STATS, jn.compute_moments(X.astype(jnp.complex64), axis=0)
        ),
        TypeError,
        "update_stats: complex moments have a complex mean. Received moments.mean of "
        "complex64 and stats.mean of float32; use jaxnorm.init_stats(..., "
        "dtype=complex64).",
    ),
    "one replica with a weight for every feature": (
        lambda: jn.merge_stats(STATS._replace(weight=jnp.zeros(6))),
        ValueError,
        "merge_stats: the leaves of one NormStats must have a leading axis of "
        "replicas, and mean and var one of features. Received (mean, var, weight) of "
        "shapes (6,), (6,), (6,); pass a sequence of replicas, or axis_name inside "
        "pmap or shard_map.",
    ),
    "replicas in a dictionary": (
        lambda: jn.merge_stats({"a": STATS}),
        TypeError,
        "merge_stats: stats must be one NormStats, or a sequence of them. Received "
        "dict; make a list of the replicas of one layer, and map merge_stats over "
        "the layers of a model.",
    ),
    "replicas that are none": (
        lambda: jn.merge_stats("ab"),
        TypeError,
        "merge_stats: stats must be one NormStats, or a sequence of them. Received "
        "str; make a list of the replicas of one layer, and map merge_stats over "
        "the layers of a model.",
    ),
    "a replica that is a single number": (
        lambda: jn.check_replicas({"a": jnp.array(1.0)}, stacked=True),
        ValueError,
        "check_replicas: with stacked=True arrays must have a leading axis of "
        "replicas. Received ['a'] of shape (); leave stacked out for what is not "
        "replicated.",
    ),
    "no replica at all": (
        lambda: jn.check_replicas({"a": jnp.zeros((0, 3))}, stacked=True),
        ValueError,
        "check_replicas: with stacked=True arrays must have a leading axis of "
        "replicas. Received ['a'] of shape (0, 3); leave stacked out for what is not "
        "replicated.",
    ),
    "unknown way to merge": (
        lambda: jn.merge_stats([STATS], method="median"),
        ValueError,
        "merge_stats: method must be 'total_variance' or 'average'. Received "
        "method='median'; the first counts the spread of the means too.",
    ),
    "nothing to merge": (
        lambda: jn.merge_stats([]),
        ValueError,
        "merge_stats: at least one replica is needed. Received none; pass a list of "
        "NormStats.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    call, kind, text = ERRORS[name]
    with pytest.raises(kind) as error:
        call()
    assert error.value.args[0] == text


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
