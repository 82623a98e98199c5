"""flax.linen, with the dtype of the input as the dtype of the computation."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.providers import Function
from benchmarks.shapes import Case


def build(case: Case) -> Function | None:
    """Return the function of a case."""
    # Without `dtype` a bfloat16 input would give a float32 output.
    options = {"dtype": jnp.dtype(case.dtype), "epsilon": 1e-5}
    if "batch_norm" in case.op:
        module = nn.BatchNorm(axis_name=case.axis_name, **options)
        return lambda *arrays: _batch_norm(case, module, *arrays)
    module = {
        "layer_norm": lambda: nn.LayerNorm(**options),
        "rms_norm": lambda: nn.RMSNorm(**options),
        "group_norm": lambda: nn.GroupNorm(case.groups, **options),
        "instance_norm": lambda: nn.InstanceNorm(**options),
    }[case.op]()
    has_bias = case.op != "rms_norm"

    def function(x, scale, bias, mean, var):
        params = {"scale": scale, "bias": bias} if has_bias else {"scale": scale}
        return module.apply({"params": params}, x), ()

    return function


def _batch_norm(case, module, x, scale, bias, mean, var):
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    if case.op == "batch_norm_eval":
        return module.apply(variables, x, use_running_average=True), (mean, var)
    y, updates = module.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )
    y = jax.nn.relu(y) if case.op == "batch_norm_relu" else y
    return y, (updates["batch_stats"]["mean"], updates["batch_stats"]["var"])
