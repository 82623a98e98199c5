"""How far results may lie from those of PyTorch: the tolerance of the stored cases.

Every result is a sum of terms, and each operation on the way to it rounds. To first
order its error is (a number of roundings) x (unit roundoff) x (the sum of the
magnitudes of its terms). `magnitudes` returns the last factor, for each element by
itself: elements that are small because terms cancel are not asked for digits that
their terms do not have, and large elements elsewhere excuse nothing. The error of a
long sum is covered: it grows as sqrt(n) times a typical partial sum, the sum of
magnitudes as n.

The number of roundings: about ten operations lie between an input and a gradient,
with errors of random sign. PyTorch's float32 results lie within 4 of its float64
results.
"""

import chex
import jax
import numpy as np

from tests.golden_cases import Arrays, Case, Program

ROUNDINGS = 6


def magnitudes(case: Case) -> Arrays:
    """Return the sum of the magnitudes of the terms of each result, in float64."""
    inputs = {key: value.astype(np.float64) for key, value in case.inputs.items()}
    if not case.program.training:
        return step_magnitudes(case.program, inputs)
    steps = [
        step_magnitudes(case.program, {**inputs, "x": x, "cotangent": cotangent})
        for x, cotangent in zip(inputs["x"], inputs["cotangent"], strict=True)
    ]
    result = {key: np.stack([step[key] for step in steps]) for key in steps[0]}
    # A running mean is an average of elements. A running variance is one of squares:
    # these are positive and do not cancel.
    all_but_features = tuple(a for a in range(1, inputs["x"].ndim) if a != 2)
    batch_means = np.abs(inputs["x"]).mean(all_but_features)
    result["running_mean"] = np.maximum.accumulate(batch_means)
    result["running_var"] = case.expected["float64"]["running_var"]
    return result


def step_magnitudes(program: Program, inputs: Arrays) -> Arrays:
    """Return the magnitudes for the output and the gradients of one step.

    For y = weight (x - mean) / std + bias the terms of the gradient for x are those of
    (g - average(g) - normalized average(g normalized)) / std with g = weight cotangent.
    """
    x, cotangent = inputs["x"], np.abs(inputs["cotangent"])
    if program.num_axes is not None:
        parameter_shape = x.shape[-program.num_axes :]
        summed = tuple(range(x.ndim - program.num_axes))
        grouped = (*x.shape[: -program.num_axes], -1)
    else:
        parameter_shape = (x.shape[1], *(1,) * (x.ndim - 2))
        summed = tuple(a for a in range(x.ndim) if a != 1)
        grouped = (x.shape[0], program.num_groups or x.shape[1], -1)
    reduced = (0, 2) if program.function == "batch_norm" else -1

    def average(values: np.ndarray) -> np.ndarray:
        """Average what is normalized together."""
        values = values.reshape(grouped)
        mean = values.mean(reduced, keepdims=True)
        return np.broadcast_to(mean, values.shape).reshape(x.shape)

    def parameter(name: str, default: float) -> np.ndarray:
        if name in inputs:
            return inputs[name].reshape(parameter_shape)
        return np.full(parameter_shape, default)

    # The error of a mean is that of a sum of the elements, no less where they cancel.
    if program.training is False:
        mean = parameter("running_mean", 0.0)
        var = parameter("running_var", 1.0)
        mean_terms = np.abs(mean)
    elif program.function == "rms_norm":
        mean = mean_terms = np.zeros_like(x)
        var = average(x**2)
    else:
        mean, mean_terms = average(x), average(np.abs(x))
        var = average((x - mean) ** 2)
    std = np.sqrt(var + program.eps)
    normalized = (np.abs(x - mean) + mean_terms) / std

    weight, bias = np.abs(parameter("weight", 1.0)), np.abs(parameter("bias", 0.0))
    terms = weight * cotangent
    grad_x = terms / std
    if program.training is not False:
        grad_x += (average(terms) + normalized * average(terms * normalized)) / std
    result = {"output": weight * normalized + bias, "grad_x": grad_x}
    if "weight" in inputs:
        result["grad_weight"] = (cotangent * normalized).sum(summed)
    if "bias" in inputs:
        result["grad_bias"] = cotangent.sum(summed)
    return result


def assert_equal_to_rounding(
    actual: Arrays, expected: Arrays, case: Case, precision: str, roundings: int
) -> None:
    """Assert that errors, counted in roundings in `precision`, are few."""
    unit_roundoff = np.finfo(precision).eps / 2

    def count(a: np.ndarray, b: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
        error = np.abs(a.astype(np.float64) - b)
        return np.asarray(error / (unit_roundoff * magnitude))

    errors = jax.tree.map(count, actual, expected, magnitudes(case))
    zeros = jax.tree.map(np.zeros_like, errors)
    chex.assert_trees_all_close(errors, zeros, rtol=0, atol=roundings)
