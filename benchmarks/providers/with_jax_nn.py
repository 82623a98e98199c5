"""jax.nn.standardize, with scale and bias written after it as its users do."""

import jax

from benchmarks.providers import Function
from benchmarks.shapes import Case


def build(case: Case) -> Function | None:
    """Return the function of a case; there is no RMS norm and no state."""
    rank = len(case.shape)
    axis = {
        "layer_norm": (-1,),
        "instance_norm": tuple(range(1, rank - 1)),
        "batch_norm": tuple(range(rank - 1)),
        "batch_norm_relu": tuple(range(rank - 1)),
        "batch_norm_eval": (),
    }.get(case.op)
    if axis is None:
        return None

    def function(x, scale, bias, mean, var):
        statistics = (mean, var) if case.op == "batch_norm_eval" else ()
        y = jax.nn.standardize(x, axis, *statistics)
        y = (y * scale + bias).astype(x.dtype)
        y = jax.nn.relu(y) if case.op == "batch_norm_relu" else y
        return y, ()

    return function
