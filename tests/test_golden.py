"""jaxnorm against stored outputs of PyTorch, made by `golden/make_golden.py`.

Cases run in float32, in two layouts, and in float64: the first shows agreement to
float32 rounding, the second that no small difference hides behind the rounding.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.compiling import quick_jit
from tests.golden_cases import Case, Program, load_cases
from tests.golden_tolerance import ROUNDINGS, assert_equal_to_rounding

CASES = load_cases()

# What the data must hold at least.
AFFINE = ("affine", "no_affine")
REQUIRED = {
    *(
        f"batch_norm-{mode}-{rank}-momentum_{momentum}-{affine}"
        for mode in ("train", "eval")
        for rank in ("0d", "1d", "2d", "3d")
        for momentum in (0.1, None)
        for affine in AFFINE
    ),
    *(
        f"layer_norm-{axes}_axes-{affine}"
        for axes in (1, 2, 3)
        for affine in (*AFFINE, "scale_only")
    ),
    *(
        f"rms_norm-{axes}_axes-{affine}"
        for axes in (1, 2, 3)
        for affine in ("scale_only", "no_affine")
    ),
    *(
        f"group_norm-{rank_and_groups}_groups-{affine}"
        for rank_and_groups in ("0d-2", "1d-1", "1d-2", "1d-3", "1d-6", "2d-3", "3d-2")
        for affine in AFFINE
    ),
    *(
        f"instance_norm-{rank}-{affine}"
        for rank in ("1d", "2d", "3d")
        for affine in AFFINE
    ),
    *(
        f"{place}-{special}-{'scale_only' if 'rms' in place else 'affine'}"
        for place in (
            "batch_norm-train-2d-momentum_0.4",
            "batch_norm-eval-2d-momentum_0.4",
            "layer_norm-2_axes",
            "rms_norm-2_axes",
            "group_norm-2d-3_groups",
            "instance_norm-2d",
        )
        for special in ("eps_1e-3", "offset", "spread", "outliers", "constant")
    ),
    "rms_norm-1_axes-eps_float32-scale_only",
}

each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def call_jaxnorm(
    program: Program, layout: str, x: jax.Array, parameters: Any, stats: Any
) -> tuple[jax.Array, Any]:
    """Call the function of a program on an input that lies as PyTorch has it.

    In the layout "moved" features are last for jaxnorm, and the axes that LayerNorm
    normalizes over are first.
    """
    scale, bias = parameters.get("weight"), parameters.get("bias")
    eps = program.eps
    if program.num_axes is not None:
        in_torch = tuple(range(-program.num_axes, 0))
        axis = in_torch if layout == "as_torch" else tuple(range(program.num_axes))
        x = jnp.moveaxis(x, in_torch, axis)
        if program.function == "layer_norm":
            y = jn.layer_norm(x, scale, bias, axis=axis, eps=eps)
        else:
            y = jn.rms_norm(x, scale, axis=axis, eps=eps)
        return jnp.moveaxis(y, axis, in_torch), stats

    feature_axis = 1 if layout == "as_torch" else -1
    x = jnp.moveaxis(x, 1, feature_axis)
    choices: dict[str, Any] = {"feature_axis": feature_axis, "eps": eps}
    if program.function == "batch_norm":
        # PyTorch's momentum is the weight of the new value, and its running variance
        # is unbiased.
        decay = None if program.momentum is None else 1 - program.momentum
        choices.update(training=program.training, decay=decay, ddof=1)
        y, stats = jn.batch_norm(x, stats, scale, bias, **choices)
    elif program.function == "group_norm":
        choices["num_groups"] = program.num_groups
        y = jn.group_norm(x, scale, bias, **choices)
    else:
        y = jn.instance_norm(x, scale, bias, **choices)
    return jnp.moveaxis(y, feature_axis, 1), stats


def run(program: Program, layout: str, inputs: dict[str, jax.Array]) -> Any:
    """Run jaxnorm forwards and backwards; the results are named as PyTorch's."""
    parameters = {key: inputs[key] for key in ("weight", "bias") if key in inputs}

    def step(stats: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        x, cotangent = pair
        forward = functools.partial(call_jaxnorm, program, layout, stats=stats)
        output, pull_back, stats = jax.vjp(forward, x, parameters, has_aux=True)
        grad_x, gradients = pull_back(cotangent)
        results = {"output": output, "grad_x": grad_x}
        results.update({f"grad_{key}": value for key, value in gradients.items()})
        if program.training:
            results.update(running_mean=stats.mean, running_var=stats.var)
        return stats, results

    x, cotangent = inputs["x"], inputs["cotangent"]
    stats = None
    if program.training:
        prior_weight = 0.0 if program.momentum is None else 1.0
        stats = jn.init_stats(x.shape[2], prior_weight=prior_weight, dtype=x.dtype)
        return jax.lax.scan(step, stats, (x, cotangent))[1]
    if program.training is False:
        mean, var = inputs["running_mean"], inputs["running_var"]
        stats = jn.NormStats(mean, var, jnp.ones((), mean.dtype))
    return step(stats, (x, cotangent))[1]


@functools.cache
def compiled(
    program: Program, layout: str, precision: str, way: str
) -> Callable[..., Any]:
    """Return `run` under jit; cases that differ in their data only share it.

    In float32 it is compiled as users compile it.
    """
    del way  # what is compiled depends on it
    jit = jax.jit if precision == "float32" else quick_jit
    return jit(functools.partial(run, program, layout))


def list_runs() -> Iterator[Any]:
    """Yield every case in the layouts and precisions that it is run in.

    A case without parameters differs from its neighbour in nothing else: one run is
    enough for it.
    """
    for case in CASES:
        runs = [("float32", "moved")]
        if "weight" in case.inputs:
            runs += [("float32", "as_torch"), ("float64", "moved")]
        for precision, layout in runs:
            name = f"{case.name}-{precision}-{layout}"
            yield pytest.param(case, precision, layout, id=name)


@pytest.mark.parametrize(("case", "precision", "layout"), list(list_runs()))
def test_agrees_with_pytorch(
    case: Case, precision: str, layout: str, platform: str
) -> None:
    with jax.enable_x64(precision == "float64"):
        inputs = {key: jnp.asarray(v, precision) for key, v in case.inputs.items()}
        results = compiled(case.program, layout, precision, platform)(inputs)
        actual = {key: np.asarray(value) for key, value in results.items()}
    expected = case.expected[precision]
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    # Both sides have rounded; seen from float32, the float64 result has not.
    assert_equal_to_rounding(actual, expected, case, precision, 2 * ROUNDINGS)
    if precision == "float32":
        exact = case.expected["float64"]
        assert_equal_to_rounding(actual, exact, case, precision, ROUNDINGS)


@each_case
def test_tolerance_fits_pytorch_itself(case: Case) -> None:
    single, double = case.expected["float32"], case.expected["float64"]
    assert_equal_to_rounding(single, double, case, "float32", ROUNDINGS)


def test_data_are_complete() -> None:
    assert REQUIRED - {case.name for case in CASES} == set()
