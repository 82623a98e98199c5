"""Flax linen's norms without running statistics."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxnorm.axes import Axes, AxisGroups, AxisName
from jaxnorm.flax_shared import inputs, per_example
from jaxnorm.flax_shared.per_example import Plan
from jaxnorm.linen.base import Norm, label_of


class PerExample(Norm):
    """A norm without running statistics; its plan says what is normalized together."""

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalize `x`.

        Args:
          x: array of a floating-point or complex dtype.
          mask: bool mask or weights that broadcast to `x`.
          scale: gamma, where the module has none of its own.
          bias: beta, likewise.

        Returns:
          Array of the shape of `x`.

        Raises:
          TypeError: if `x` is neither floating-point nor complex.
          ValueError: if shapes disagree, or an axis does not exist.
        """
        label = label_of(self)
        x = inputs.check_input(label, x, self.dtype)
        plan = self._plan(label, x)
        gamma, beta, dtype = self._parameters(x, plan.features, scale, bias)
        return per_example.normalize(
            self,
            label,
            x,
            plan,
            gamma,
            beta,
            mask=mask,
            dtype=dtype,
            synchronize=not self.is_initializing(),
        )

    @nn.nowrap
    def _plan(self, label: str, x: jax.Array) -> Plan:
        """Return what is normalized together, which each of the norms below says."""
        raise NotImplementedError


class LayerNorm(PerExample):
    """Normalize over the features of every example.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    Arguments that are not listed are those of `flax.linen.LayerNorm`.

    Attributes:
      reduction_axes: axes that are normalized together.
      feature_axes: axes that scale and bias belong to.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxnorm.linen
      >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
      >>> norm = jaxnorm.linen.LayerNorm()
      >>> y, variables = norm.init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[-1.  1.]
       [-1.  1.]]

    Reference:
      Ba, Kiros and Hinton, Layer normalization, 2016, arXiv:1607.06450.
    """

    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: AxisGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.nowrap
    def _plan(self, label: str, x: jax.Array) -> Plan:
        return per_example.layer_plan(label, x, self.reduction_axes, self.feature_axes)


class RMSNorm(PerExample):
    """Divide every example by its root mean square.

        y = scale * x / sqrt(mean(|x|^2) + epsilon)

    Arguments that are not listed are those of `flax.linen.RMSNorm`.

    Attributes:
      reduction_axes: axes that are normalized together.
      feature_axes: axes that scale belongs to.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxnorm.linen
      >>> x = jnp.array([[3.0, 4.0, 0.0, 0.0]])
      >>> norm = jaxnorm.linen.RMSNorm()
      >>> y, variables = norm.init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[1.2 1.6 0.  0. ]]

    Reference:
      Zhang and Sennrich, Root mean square layer normalization, 2019, arXiv:1910.07467.
    """

    _parameter_names: ClassVar[tuple[str, ...]] = ("scale",)

    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: AxisGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.nowrap
    def _plan(self, label: str, x: jax.Array) -> Plan:
        return per_example.layer_plan(
            label, x, self.reduction_axes, self.feature_axes, centered=False
        )


class GroupNorm(PerExample):
    """Normalize groups of neighbouring channels of every example.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    Arguments that are not listed are those of `flax.linen.GroupNorm`.

    Attributes:
      num_groups: number of groups; None where `group_size` is given.
      group_size: channels of a group.
      reduction_axes: axes that are normalized together, the channels among them; by
        default all but the first.
      feature_axis: the axis of channels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxnorm.linen
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> norm = jaxnorm.linen.GroupNorm(2)
      >>> y, variables = norm.init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[-1.  1. -1.  1.]]

    Reference:
      Wu and He, Group normalization, 2018, arXiv:1803.08494.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes | None = None
    axis_name: AxisName | None = None
    axis_index_groups: AxisGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    feature_axis: int = -1

    @nn.nowrap
    def _plan(self, label: str, x: jax.Array) -> Plan:
        return per_example.group_plan(
            label,
            x,
            self.num_groups,
            self.group_size,
            self.reduction_axes,
            self.feature_axis,
        )


class InstanceNorm(PerExample):
    """Normalize every channel of every example over space.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    Arguments that are not listed are those of `flax.linen.InstanceNorm`.

    Attributes:
      feature_axes: axes of channels; all others but the first are reduced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxnorm.linen
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> norm = jaxnorm.linen.InstanceNorm()
      >>> y, variables = norm.init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[[-1. -1.]
        [ 1.  1.]]]

    Reference:
      Ulyanov, Vedaldi and Lempitsky, Instance normalization, 2016, arXiv:1607.08022.
    """

    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: AxisGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.nowrap
    def _plan(self, label: str, x: jax.Array) -> Plan:
        return per_example.instance_plan(label, x, self.feature_axes)
