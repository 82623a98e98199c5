"""The norms that the examples compare, in one form: state in, state out."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import jaxnorm as jn

NormName = Literal["batch", "group", "layer", "instance", "none"]


def init_stats(norm: NormName, features: int) -> jn.NormStats | None:
    """Return the running statistics a norm starts with; only BatchNorm has any."""
    return jn.init_stats(features) if norm == "batch" else None


def apply_norm(
    norm: NormName,
    x: jax.Array,
    stats: jn.NormStats | None,
    scale: jax.Array | None,
    bias: jax.Array,
    *,
    training: bool,
    decay: float,
    weights: ArrayLike | None,
    axis_name: str | None,
) -> tuple[jax.Array, jn.NormStats | None]:
    """Normalize feature maps of shape (rows, height, width, features).

    Weights, of shape (rows,), and devices concern BatchNorm alone, which pools rows.
    The other norms look at one row at a time and return the statistics they were given.
    """
    if norm == "batch":
        return jn.batch_norm(
            x,
            stats,
            scale,
            bias,
            training=training,
            decay=decay,
            weights=None if weights is None else jnp.reshape(weights, (-1, 1, 1, 1)),
            axis_name=axis_name,
        )
    return PER_ROW[norm](x, scale, bias), stats


def _group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    # Eight groups, or as many as divide the features of a narrow network.
    groups = math.gcd(8, x.shape[-1])
    return jn.group_norm(x, scale, bias, num_groups=groups)


def _no_norm(x: jax.Array, scale: None, bias: jax.Array) -> jax.Array:
    return x + bias


PER_ROW: dict[NormName, Callable[[jax.Array, Any, jax.Array], jax.Array]] = {
    "group": _group_norm,
    "layer": jn.layer_norm,
    "instance": jn.instance_norm,
    "none": _no_norm,
}
