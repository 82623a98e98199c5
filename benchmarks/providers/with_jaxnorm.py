"""The subject of the comparison."""

import jax.numpy as jnp

import jaxnorm as jn
from benchmarks.providers import Function
from benchmarks.shapes import Case


def build(case: Case) -> Function | None:
    """Return the function of a case."""
    if "batch_norm" in case.op:
        return lambda *arrays: _batch_norm(case, *arrays)
    norms = {
        "layer_norm": jn.layer_norm,
        "rms_norm": lambda x, scale, bias: jn.rms_norm(x, scale),
        "group_norm": lambda *a: jn.group_norm(*a, num_groups=case.groups),
        "instance_norm": jn.instance_norm,
    }
    return lambda x, scale, bias, mean, var: (norms[case.op](x, scale, bias), ())


def _batch_norm(case, x, scale, bias, mean, var):
    # A weight of 1 is what Flax and PyTorch take for granted: a plain moving average.
    stats = jn.NormStats(mean, var, jnp.float32(1))
    y, stats = jn.batch_norm(
        x,
        stats,
        scale,
        bias,
        training=case.op != "batch_norm_eval",
        axis_name=case.axis_name,
        activation="relu" if case.op == "batch_norm_relu" else None,
    )
    return y, (stats.mean, stats.var)
