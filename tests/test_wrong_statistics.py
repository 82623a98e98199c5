"""Wrong statistics, moments and replicas: which error, and its words."""

import jax
import jax.numpy as jnp
import pytest

import jaxnorm as jn
from tests.wrong_calls import STATS, X, batch_norm, check_error

ERRORS = {
    "statistics of no number": (
        lambda: jn.init_stats(6, dtype=object),
        TypeError,
        "init_stats: statistics are floating-point or complex numbers. Received "
        "dtype=object; the usual one is float32.",
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
    "stats of several replicas": (
        lambda: batch_norm(stats=jax.tree.map(lambda v: jnp.stack([v] * 4), STATS)),
        ValueError,
        "batch_norm: mean and var must have one shape, and weight that or none. "
        "Received (mean, var, weight) of shapes (4, 6), (4, 6), (4,); "
        "jaxnorm.merge_stats merges stacked ones, jax.vmap maps over them.",
    ),
    "stats of several replicas, a weight for every feature": (
        lambda: batch_norm(stats=jax.tree.map(lambda v: jnp.zeros((4, 6)), STATS)),
        ValueError,
        "batch_norm: stats must have shape (6,), the size of axis 1 of x. Received "
        "stats with shape (4, 6) for x with shape (4, 6); jaxnorm.merge_stats merges "
        "stacked ones, jax.vmap maps over them.",
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
    "scale and bias before the statistics": (
        lambda: batch_norm(X, jnp.ones(6), jnp.zeros(6)),
        TypeError,
        "batch_norm: stats must be a NormStats. Received ArrayImpl; it comes before "
        "scale and bias; start with jaxnorm.init_stats(num_features).",
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
    "statistics that a checkpoint gave as a list": (
        lambda: jn.update_stats(list(STATS), None),
        TypeError,
        "update_stats: stats must be a NormStats. Received list; "
        "jaxnorm.NormStats(*stats) puts its parts together.",
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
    "nothing to merge": (
        lambda: jn.merge_stats([]),
        ValueError,
        "merge_stats: at least one replica is needed. Received none; pass a list of "
        "NormStats.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    check_error(*ERRORS[name])
