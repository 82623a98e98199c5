"""Flax nnx's norms without running statistics."""

import math
from dataclasses import KW_ONLY
from typing import Any

import jax
from flax import nnx

from jaxnorm.axes import Axes
from jaxnorm.flax_shared import per_example
from jaxnorm.flax_shared.per_example import Plan
from jaxnorm.nnx.base import AffineNorm, Norm


@nnx.dataclass(eq=False, kw_only=True)
class LayerNorm(AffineNorm):
    """Normalize over the features of every example.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    Arguments that are not listed are those of `flax.nnx.LayerNorm`.

    Args:
      num_features: size of the feature axes.
      reduction_axes: axes that are normalized together.
      feature_axes: axes that scale and bias belong to.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnorm.nnx import LayerNorm
      >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
      >>> print(LayerNorm(2, rngs=nnx.Rngs(0))(x).round(3))
      [[-1.  1.]
       [-1.  1.]]

    Reference:
      Ba, Kiros and Hinton, Layer normalization, 2016, arXiv:1607.06450.
    """

    reduction_axes: Axes = -1
    feature_axes: Axes = -1

    def _plan(self, label: str, x: jax.Array) -> Plan:
        return per_example.layer_plan(label, x, self.reduction_axes, self.feature_axes)


@nnx.dataclass(eq=False, kw_only=True)
class RMSNorm(Norm):
    """Divide every example by its root mean square.

        y = scale * x / sqrt(mean(|x|^2) + epsilon)

    Arguments that are not listed are those of `flax.nnx.RMSNorm`.

    Args:
      num_features: size of the feature axes.
      reduction_axes: axes that are normalized together.
      feature_axes: axes that scale belongs to.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnorm.nnx import RMSNorm
      >>> x = jnp.array([[3.0, 4.0, 0.0, 0.0]])
      >>> print(RMSNorm(4, rngs=nnx.Rngs(0))(x).round(3))
      [[1.2 1.6 0.  0. ]]

    Reference:
      Zhang and Sennrich, Root mean square layer normalization, 2019, arXiv:1910.07467.
    """

    reduction_axes: Axes = -1
    feature_axes: Axes = -1

    def _plan(self, label: str, x: jax.Array) -> Plan:
        return per_example.layer_plan(
            label, x, self.reduction_axes, self.feature_axes, centered=False
        )


@nnx.dataclass(eq=False)
class GroupNorm(AffineNorm):
    """Normalize groups of neighbouring channels of every example.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    Arguments that are not listed are those of `flax.nnx.GroupNorm`.

    Args:
      num_features: number of channels.
      num_groups: number of groups; None where `group_size` is given.
      group_size: channels of a group.
      reduction_axes: axes that are normalized together, the channels among them; by
        default all but the first.
      feature_axis: the axis of channels.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnorm.nnx import GroupNorm
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> print(GroupNorm(4, 2, rngs=nnx.Rngs(0))(x).round(3))
      [[-1.  1. -1.  1.]]

    Reference:
      Wu and He, Group normalization, 2018, arXiv:1803.08494.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    _: KW_ONLY
    reduction_axes: Axes | None = None
    feature_axis: int = -1

    def __post_init__(self, *init: Any) -> None:
        """Make the variables."""
        channels = math.prod(self._feature_shape)
        self.num_groups = per_example.count_groups(
            self._name_in_errors, channels, self.num_groups, self.group_size
        )
        self.group_size = channels // self.num_groups
        super().__post_init__(*init)

    def _plan(self, label: str, x: jax.Array) -> Plan:
        return per_example.group_plan(
            label, x, self.num_groups, None, self.reduction_axes, self.feature_axis
        )


@nnx.dataclass(eq=False, kw_only=True)
class InstanceNorm(AffineNorm):
    """Normalize every channel of every example over space.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    Arguments that are not listed are those of `flax.nnx.InstanceNorm`.

    Args:
      num_features: number of channels.
      feature_axes: axes of channels; all others but the first are reduced.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnorm.nnx import InstanceNorm
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> print(InstanceNorm(2, rngs=nnx.Rngs(0))(x).round(3))
      [[[-1. -1.]
        [ 1.  1.]]]

    Reference:
      Ulyanov, Vedaldi and Lempitsky, Instance normalization, 2016, arXiv:1607.08022.
    """

    feature_axes: Axes = -1

    def _plan(self, label: str, x: jax.Array) -> Plan:
        return per_example.instance_plan(label, x, self.feature_axes)
