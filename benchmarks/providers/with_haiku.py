"""dm-haiku, whose parameters and statistics have the dtype of the input."""

import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks.providers import Function
from benchmarks.shapes import Case

NAME = "norm"


def build(case: Case) -> Function | None:
    """Return the function of a case."""
    if "batch_norm" in case.op:
        return lambda *arrays: _batch_norm(case, *arrays)
    if case.op == "rms_norm":
        return _rms_norm
    make = {
        "layer_norm": lambda: hk.LayerNorm(-1, False, False),
        "group_norm": lambda: hk.GroupNorm(
            case.groups, create_scale=False, create_offset=False
        ),
        "instance_norm": lambda: hk.InstanceNorm(False, False),
    }[case.op]

    @hk.transform
    def call(x, scale, offset):
        return make()(x, scale, offset)

    def function(x, scale, bias, mean, var):
        return call.apply({}, None, x, scale.astype(x.dtype), bias.astype(x.dtype)), ()

    return function


@hk.transform
def _call_rms_norm(x):
    return hk.RMSNorm(-1, name=NAME)(x)


def _rms_norm(x, scale, bias, mean, var):
    params = {NAME: {"scale": scale.astype(x.dtype)}}
    return _call_rms_norm.apply(params, None, x), ()


def _batch_norm(case, x, scale, bias, mean, var):
    @hk.transform_with_state
    def call(x, scale, offset):
        module = hk.BatchNorm(
            False, False, 0.99, cross_replica_axis=case.axis_name, name=NAME
        )
        return module(x, case.op != "batch_norm_eval", scale=scale, offset=offset)

    wide = (1,) * (x.ndim - 1) + (-1,)
    averages = {"mean_ema": mean, "var_ema": var}
    state = {
        f"{NAME}/~/{name}": {
            "counter": jnp.int32(1),
            "hidden": value.reshape(wide).astype(x.dtype),
            "average": value.reshape(wide).astype(x.dtype),
        }
        for name, value in averages.items()
    }
    parameters = scale.astype(x.dtype), bias.astype(x.dtype)
    y, state = call.apply({}, state, None, x, *parameters)
    y = jax.nn.relu(y) if case.op == "batch_norm_relu" else y
    return y, tuple(
        state[f"{NAME}/~/{name}"]["average"].reshape(-1) for name in averages
    )
