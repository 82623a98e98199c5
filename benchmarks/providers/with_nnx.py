"""flax.nnx, with the dtype of the input as the dtype of the computation."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.providers import Function
from benchmarks.shapes import Case


def build(case: Case) -> Function | None:
    """Return the function of a case."""
    # Without `dtype` a bfloat16 input would give a float32 output.
    options = {"dtype": jnp.dtype(case.dtype), "epsilon": 1e-5}
    if "batch_norm" in case.op:
        make = partial(nnx.BatchNorm, axis_name=case.axis_name, **options)
        return partial(_batch_norm, case, make)
    make = {
        "layer_norm": partial(nnx.LayerNorm, **options),
        "rms_norm": partial(nnx.RMSNorm, **options),
        "group_norm": partial(nnx.GroupNorm, num_groups=case.groups, **options),
        "instance_norm": partial(nnx.InstanceNorm, **options),
    }[case.op]
    has_bias = case.op != "rms_norm"

    def function(x, scale, bias, mean, var):
        # Variables belong to the trace they are made in, so the module is made here.
        module = make(case.features, rngs=nnx.Rngs(0))
        module.scale[...] = scale
        if has_bias:
            module.bias[...] = bias
        return module(x), ()

    return function


def _batch_norm(case, make, x, scale, bias, mean, var):
    module = make(case.features, rngs=nnx.Rngs(0))
    module.scale[...], module.bias[...] = scale, bias
    module.mean[...], module.var[...] = mean, var
    y = module(x, use_running_average=case.op == "batch_norm_eval")
    y = jax.nn.relu(y) if case.op == "batch_norm_relu" else y
    return y, (module.mean[...], module.var[...])
