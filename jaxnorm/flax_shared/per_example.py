"""The norms without running statistics: their axes, and normalization over these."""

from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import axes, options
from jaxnorm.axes import Axes
from jaxnorm.flax_shared import inputs
from jaxnorm.normalization import normalize_by_moments
from jaxnorm.operands import Operands, Output
from jaxnorm.reduction import Reduction


class Plan(NamedTuple):
    """Which axes of an input a module without running statistics works on.

    Attributes:
      features: axes that scale and bias belong to.
      reduced: axes that are normalized together.
      groups: pieces that the feature axis, then a single one, is cut into, if any.
      centered: whether the mean is subtracted.
    """

    features: tuple[int, ...]
    reduced: tuple[int, ...]
    groups: int | None = None
    centered: bool = True


def layer_plan(
    label: str,
    x: jax.Array,
    reduction_axes: Axes,
    feature_axes: Axes,
    *,
    centered: bool = True,
) -> Plan:
    """Return the plan of LayerNorm or RMSNorm."""
    return Plan(
        inputs.axes_of(label, x, feature_axes, "feature_axes"),
        inputs.axes_of(label, x, reduction_axes, "reduction_axes"),
        centered=centered,
    )


def instance_plan(label: str, x: jax.Array, feature_axes: Axes) -> Plan:
    """Return the plan of InstanceNorm."""
    features = inputs.axes_of(label, x, feature_axes, "feature_axes")
    if 0 in features:
        raise ValueError(
            f"{label}: The channel axes cannot include the leading dimension as this is"
            f" assumed to be the batch axis. Received feature_axes={feature_axes} for x"
            f" with shape {x.shape}; choose axes behind the first."
        )
    return Plan(features, axes.complement((0, *features), x.ndim))


def group_plan(
    label: str,
    x: jax.Array,
    num_groups: int | None,
    group_size: int | None,
    reduction_axes: Axes | None,
    feature_axis: int,
) -> Plan:
    """Return the plan of GroupNorm."""
    features = inputs.axes_of(label, x, feature_axis, "feature_axis")
    channel = axes.single_axis(features, caller=label)
    groups = count_groups(label, x.shape[channel], num_groups, group_size)
    if reduction_axes is None:
        reduced = tuple(sorted({*features, *range(1, x.ndim)}))
        return Plan(features, reduced, groups)
    reduced = inputs.axes_of(label, x, reduction_axes, "reduction_axes")
    if channel not in reduced:
        raise ValueError(
            f"{label}: reduction_axes must include the feature axis {channel}, "
            f"which is cut into groups. Received reduction_axes={reduction_axes} for x "
            f"with shape {x.shape}; add it, or leave reduction_axes out."
        )
    return Plan(features, reduced, groups)


def count_groups(
    label: str, channels: int, num_groups: int | None, group_size: int | None
) -> int:
    """Return the number of groups that either argument asks for."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f"{label}: either num_groups or group_size must be given. Received "
            f"num_groups={num_groups} and group_size={group_size}; pass "
            "num_groups=None with group_size, as num_groups is 32 by default."
        )
    if num_groups is not None:
        return axes.check_groups(channels, num_groups, caller=label)
    size = options.whole_number(group_size)
    if not size or channels % size:
        raise ValueError(
            f"{label}: group_size must be a whole number that divides the channels. "
            f"Received group_size={group_size} for {channels} channels; choose a "
            "divisor."
        )
    return channels // size


def normalize(
    module: Any,
    label: str,
    x: jax.Array,
    plan: Plan,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    mask: ArrayLike | None,
    dtype: DTypeLike | None,
    synchronize: bool = True,
) -> jax.Array:
    """Normalize by the moments over the reduced axes, and over devices."""
    name = module.axis_name if synchronize else None
    groups = module.axis_index_groups if synchronize else None
    weights = inputs.weights_of(label, x, mask, plan.reduced)
    if plan.reduced:  # Flax allows none: every element is then its own mean
        axes.check_reduced(x, plan.reduced, name, caller=label)
    eps = options.check_eps(module.epsilon, caller=label, name="epsilon", usual="1e-6")
    operands = Operands(x, weights, scale, bias, eps)
    groups = axes.check_axis_name(name, groups, caller=label)
    dtype = options.check_dtype(dtype, x, caller=label)
    over = Reduction(plan.reduced, name, groups, plan.centered)
    if plan.groups is not None:
        (channel,) = plan.features
        spatial = tuple(axis for axis in plan.reduced if axis != channel)
        over = over._replace(axis=spatial, channel_groups=(channel, plan.groups))
    output = Output(dtype)
    return normalize_by_moments(operands, over, output, moments_used=False)[0]
