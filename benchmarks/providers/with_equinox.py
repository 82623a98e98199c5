"""Equinox: one example at a time under vmap, images as (channels, height, width)."""

import equinox as eqx
import jax
import jax.numpy as jnp

from benchmarks.providers import Function
from benchmarks.shapes import Case

BATCH_AXIS = "batch"


def build(case: Case) -> Function | None:
    """Return the function of a case."""
    features = case.features
    if "batch_norm" in case.op:
        return lambda *arrays: _batch_norm(case, *arrays)
    make = {
        "layer_norm": lambda: eqx.nn.LayerNorm(features),
        "rms_norm": lambda: eqx.nn.RMSNorm(features, use_bias=False),
        "group_norm": lambda: eqx.nn.GroupNorm(case.groups, features),
        "instance_norm": lambda: eqx.nn.GroupNorm(features, features),
    }[case.op]
    by_row = case.op in ("layer_norm", "rms_norm")

    def function(x, scale, bias, mean, var):
        call = _with_parameters(make(), scale, bias)
        for _ in range(x.ndim - 1 if by_row else 1):
            call = jax.vmap(call)
        return call(x), ()

    return function


def _with_parameters(module, scale, bias):
    if module.bias is None:
        return eqx.tree_at(lambda m: m.weight, module, scale)
    return eqx.tree_at(lambda m: (m.weight, m.bias), module, (scale, bias))


def _batch_norm(case, x, scale, bias, mean, var):
    axis_name = BATCH_AXIS if case.axis_name is None else (BATCH_AXIS, case.axis_name)
    module, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        case.features, axis_name, mode="batch"
    )
    module = _with_parameters(module, scale, bias)
    if case.axis_name is not None:
        # A constant has another type than what shard_map computes, and `set` compares.
        state = jax.tree.map(lambda leaf: leaf + jnp.zeros_like(leaf), state)
    # Before the first step the running averages are taken as they are.
    state = state.set(module.batch_state_index, (mean, var))
    y, state = jax.vmap(
        lambda example: module(example, state, inference=case.op == "batch_norm_eval"),
        axis_name=BATCH_AXIS,
        out_axes=(0, None),
    )(x)
    y = y.astype(x.dtype)
    y = jax.nn.relu(y) if case.op == "batch_norm_relu" else y
    return y, state.get(module.batch_state_index)
