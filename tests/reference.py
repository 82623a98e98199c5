"""The textbook formula: for NumPy in float64 an oracle, for JAX plain autodiff."""

from types import ModuleType
from typing import Any

import numpy as np


def normalize(
    xp: ModuleType,
    x: Any,
    scale: Any,
    bias: Any,
    weights: Any = None,
    *,
    axes: tuple[int, ...],
    centered: bool = True,
    groups: int | None = None,
    eps: float = 1e-5,
) -> Any:
    """Normalize over `axes`, written down as in a paper.

    With `groups`, the last axis is split in (groups, channels of a group) first, and
    `axes` are those of the split array.
    """
    shape = x.shape
    if groups is not None:
        x, scale, bias, weights = (_split(v, groups) for v in (x, scale, bias, weights))
    mean, var, _ = moments(xp, x, weights, axes=axes, centered=centered)
    y = (x - mean) / xp.sqrt(var + eps)
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    return y.reshape(shape)


def moments(
    xp: ModuleType,
    x: Any,
    weights: Any = None,
    *,
    axes: tuple[int, ...],
    centered: bool = True,
) -> tuple[Any, Any, Any]:
    """Return the weighted mean, variance and count over `axes`, axes kept."""
    weights = xp.ones_like(x) if weights is None else weights + xp.zeros_like(x)
    count = xp.sum(weights, axis=axes, keepdims=True)
    mean = xp.sum(weights * x, axis=axes, keepdims=True) / count
    mean = mean if centered else xp.zeros_like(mean)
    var = xp.sum(weights * (x - mean) ** 2, axis=axes, keepdims=True) / count
    return mean, var, count


def moments64(
    x: Any, axis: tuple[int, ...], weights: Any = None
) -> tuple[Any, Any, Any]:
    """Return NumPy's count, mean and variance in float64, without the reduced axes."""
    x = np.asarray(x, np.float64)
    mean, var, count = moments(np, x, weights, axes=axis)
    return np.squeeze(count, axis), np.squeeze(mean, axis), np.squeeze(var, axis)


def _split(v: Any, groups: int) -> Any:
    if v is None:
        return None
    sizes = (1, 1) if v.shape[-1] == 1 else (groups, v.shape[-1] // groups)
    return v.reshape(v.shape[:-1] + sizes)
