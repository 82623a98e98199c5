"""The one table of norms and shapes that the tests run over."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests import reference


def batch_norm(
    x: Any, scale: Any, bias: Any, weights: Any = None, **kwargs: Any
) -> Any:
    """Return the output of batch_norm in training, from fresh statistics."""
    feature_axis = kwargs.get("feature_axis", -1)
    several = feature_axis if isinstance(feature_axis, tuple) else (feature_axis,)
    stats = jn.init_stats(tuple(x.shape[axis] for axis in several))
    y, _ = jn.batch_norm(
        x, stats, scale, bias, training=True, weights=weights, **kwargs
    )
    return y


def batch_norm_loss(stats: Any, ct: Any, **options: Any) -> Callable[..., Any]:
    """Return a loss of x, scale and bias, with the output and the new statistics."""

    def loss(x: Any, scale: Any, bias: Any) -> Any:
        y, new = jn.batch_norm(x, stats, scale, bias, training=True, **options)
        return jnp.sum(y * ct), (y, new)

    return loss


def layer_norm(
    x: Any, scale: Any, bias: Any, weights: Any = None, **kwargs: Any
) -> Any:
    """Return layer_norm."""
    return jn.layer_norm(x, scale, bias, weights=weights, **kwargs)


def rms_norm(x: Any, scale: Any, bias: Any, weights: Any = None, **kwargs: Any) -> Any:
    """Return rms_norm; it has no bias."""
    del bias
    return jn.rms_norm(x, scale, weights=weights, **kwargs)


def group_norm(
    x: Any, scale: Any, bias: Any, weights: Any = None, **kwargs: Any
) -> Any:
    """Return group_norm."""
    return jn.group_norm(x, scale, bias, weights=weights, **kwargs)


def instance_norm(
    x: Any, scale: Any, bias: Any, weights: Any = None, **kwargs: Any
) -> Any:
    """Return instance_norm."""
    return jn.instance_norm(x, scale, bias, weights=weights, **kwargs)


@dataclass(frozen=True, eq=False)
class Case:
    """One norm on one shape, and the textbook's words for it.

    `axes` are reduced, `feature_axes` hold the sizes of scale and bias.
    """

    name: str
    norm: Callable[..., jax.Array]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    feature_axes: tuple[int, ...] = (-1,)
    kwargs: dict[str, Any] = field(default_factory=dict)
    groups: int | None = None
    centered: bool = True

    def inputs(self, dtype: Any = np.float32, seed: int = 0) -> tuple[Any, Any, Any]:
        """Return random x, scale and bias."""
        rng = np.random.default_rng(seed)
        sizes = tuple(self.shape[axis] for axis in self.feature_axes)
        x = rng.normal(1.0, 2.0, self.shape)
        scale, bias = rng.normal(1.0, 0.5, sizes), rng.normal(0.0, 0.5, sizes)
        return x.astype(dtype), scale.astype(np.float32), bias.astype(np.float32)

    def cotangent(self, seed: int = 1) -> np.ndarray:
        """Return a random array of the shape of the output."""
        return np.random.default_rng(seed).normal(size=self.shape).astype(np.float32)

    def weights(self, seed: int = 2) -> np.ndarray:
        """Return fractional weights, a third of them 0 in whatever direction."""
        rng = np.random.default_rng(seed)
        diagonal = np.indices(self.shape).sum(0) % 3
        weights = rng.uniform(0.5, 2.0, self.shape) * (diagonal > 0)
        return weights.astype(np.float32)

    def __call__(self, x: Any, scale: Any, bias: Any, weights: Any = None, **kw: Any):
        """Run the norm."""
        return self.norm(x, scale, bias, weights, **self.kwargs, **kw)

    def plain(self, xp: Any, x: Any, scale: Any, bias: Any, weights: Any = None) -> Any:
        """Run the textbook's formula on the array module `xp`."""
        if self.groups is None:
            kept = {axis % len(self.shape) for axis in self.feature_axes}
            sizes = tuple(n if i in kept else 1 for i, n in enumerate(self.shape))
            scale, bias = scale.reshape(sizes), bias.reshape(sizes)
        return reference.normalize(
            xp,
            x,
            scale,
            bias if self.centered else None,
            weights,
            axes=self.axes,
            centered=self.centered,
            groups=self.groups,
        )


CASES = [
    Case("batch-features", batch_norm, (12, 5), (0,)),
    Case("batch-1d", batch_norm, (4, 8, 5), (0, 1)),
    Case("batch-odd", batch_norm, (3, 7, 5), (0, 1)),
    Case("batch-2d", batch_norm, (2, 4, 5, 2), (0, 1, 2)),
    Case("batch-3d", batch_norm, (2, 3, 3, 2, 4), (0, 1, 2, 3)),
    Case("batch-first", batch_norm, (3, 4, 5), (0, 2), (1,), {"feature_axis": 1}),
    Case(
        "batch-two-axes", batch_norm, (6, 3, 4), (0,), (1, 2), {"feature_axis": (1, 2)}
    ),
    Case("layer", layer_norm, (5, 16), (-1,)),
    Case("layer-3d", layer_norm, (2, 3, 8), (-1,)),
    Case("layer-two-axes", layer_norm, (3, 4, 6), (1, 2), (1, 2), {"axis": (-2, -1)}),
    Case("rms", rms_norm, (2, 3, 8), (-1,), centered=False),
    Case("group", group_norm, (2, 2, 4, 6), (1, 2, 4), (-1,), {"num_groups": 3}, 3),
    Case("group-features", group_norm, (4, 12), (2,), (-1,), {"num_groups": 2}, 2),
    Case("instance", instance_norm, (2, 4, 4, 3), (1, 2)),
    Case("instance-first", instance_norm, (2, 3, 7), (2,), (1,), {"feature_axis": 1}),
]

# One case a family, for what is slow.
FAMILIES = [
    case
    for case in CASES
    if case.name in ("batch-1d", "layer-3d", "rms", "group", "instance")
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_family = pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
