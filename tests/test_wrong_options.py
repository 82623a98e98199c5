"""Wrong options (numbers, names, dtypes and flags): which error, and its words."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.wrong_calls import STATS, X, batch_norm, check_error

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
    "prior_weight is too large": (
        lambda: jn.init_stats(6, prior_weight=1e39),
        ValueError,
        "init_stats: prior_weight must not be negative, and must be finite. Received "
        "prior_weight=1e+39, which float32 cannot hold; 0 ignores the initial values, "
        "1 is what PyTorch and Flax do.",
    ),
    "an eps of weight norm that is zero": (
        lambda: jn.weight_norm(X, eps=0.0),
        ValueError,
        "weight_norm: eps must be positive, or a constant input would be divided by "
        "zero, and finite. Received eps=0.0; the usual value is 1e-12.",
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
    "a number of groups that is a flag": (
        lambda: jn.group_norm(X, num_groups=True),
        TypeError,
        "group_norm: num_groups must be an integer. Received num_groups=True; pass a "
        "whole number, such as 32.",
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
    "a traced number of groups": (
        lambda: jax.make_jaxpr(lambda n: jn.group_norm(X, num_groups=n))(1),
        TypeError,
        "group_norm: num_groups must be an integer. Received "
        "num_groups=JitTracer(~int32[]); make it a static argument of jit.",
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
    "an eps that is flushed to zero": (
        lambda: jn.layer_norm(X, eps=1e-45),
        ValueError,
        "layer_norm: eps must be positive, or a constant input would be divided by "
        "zero, and finite. Received eps=1e-45, which processors may take "
        "for zero; the usual value is 1e-5.",
    ),
    "no axis to pool over": (
        lambda: jn.pool_moments(jn.compute_moments(X, 0), None),
        ValueError,
        "pool_moments: axis_name must name the axes to pool over. Received "
        "axis_name=None; leave the call out where there is one device.",
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
    "unknown way to merge": (
        lambda: jn.merge_stats([STATS], method="median"),
        ValueError,
        "merge_stats: method must be 'total_variance' or 'average'. Received "
        "method='median'; the first counts the spread of the means too.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    check_error(*ERRORS[name])


@pytest.mark.parametrize(
    "call",
    [
        lambda dtype: jn.init_stats(6, dtype=dtype).mean,
        lambda dtype: jn.layer_norm(X, dtype=dtype),
    ],
    ids=["init_stats", "layer_norm"],
)
def test_a_wide_dtype_without_x64_is_told(call):
    """As JAX does."""
    with pytest.warns(UserWarning, match="dtype float64 .*truncated to dtype float32"):
        assert call(jnp.float64).dtype == jnp.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(float).dtype == jnp.float32  # whatever JAX takes for a float
        with jax.enable_x64(True):
            assert call(jnp.float64).dtype == jnp.float64
