"""What the linen and the nnx modules have in common; they only hold variables.

Both name their arguments as Flax does, so a module can be read here whatever its kind.
Flax's words and the functional API's: `momentum` is `decay`, `epsilon` is `eps`, `mask`
is `weights`, BatchNorm's `axis` is `feature_axis`. `use_fast_variance` and
`force_float32_reductions` are accepted and change nothing: statistics are always the
accurate ones, in at least float32. Where nothing is left to reduce, a value is its own
mean, as in Flax.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax.typing import ArrayLike

from jaxnorm import arguments, axes
from jaxnorm.affine import Operands, Output
from jaxnorm.axes import Axes
from jaxnorm.normalization import normalize_by_moments
from jaxnorm.norms.batch import batch_norm
from jaxnorm.running import NormStats, init_stats
from jaxnorm.shifted import Reduction
from jaxnorm.weight_norms import SpectralStats, spectral_norm, weight_norm

MOMENTUM = "momentum"  # the default of `decay`: what Flax's `momentum` says


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


@contextmanager
def errors_named(label: str) -> Iterator[None]:
    """Put the module's name where the core's errors name their function."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):
            raise  # JAX's own, whose constructors take more than a text
        text = str(error)
        for name in ("batch_norm", "spectral_norm", "weight_norm"):
            text = text.removeprefix(f"{name}: ")
        raise type(error)(f"{label}: {text}") from None


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
        axes_of(label, x, feature_axes, "feature_axes"),
        axes_of(label, x, reduction_axes, "reduction_axes"),
        centered=centered,
    )


def instance_plan(label: str, x: jax.Array, feature_axes: Axes) -> Plan:
    """Return the plan of InstanceNorm."""
    features = axes_of(label, x, feature_axes, "feature_axes")
    if 0 in features:
        raise ValueError(
            f"{label}: The channel axes cannot include the leading dimension as this is"
            f" assumed to be the batch axis. Received feature_axes={feature_axes} for x"
            f" with shape {x.shape}."
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
    features = axes_of(label, x, feature_axis, "feature_axis")
    channel = axes.single(features, caller=label)
    groups = count_groups(label, x.shape[channel], num_groups, group_size)
    if reduction_axes is None:
        reduced = tuple(sorted({*features, *range(1, x.ndim)}))
        return Plan(features, reduced, groups)
    reduced = axes_of(label, x, reduction_axes, "reduction_axes")
    if channel not in reduced:
        raise ValueError(
            f"{label}: reduction_axes must include the feature axis {channel}, "
            f"which is cut into groups. Received reduction_axes={reduction_axes} for x "
            f"with shape {x.shape}."
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
    if not group_size or group_size < 1 or channels % group_size:
        raise ValueError(
            f"{label}: group_size must be positive and divide the number of channels. "
            f"Received group_size={group_size} for {channels} channels."
        )
    return channels // group_size


def check_input(label: str, x: ArrayLike, dtype: Any) -> jax.Array:
    """Return `x` as an array, complex where the output is to be."""
    x = arguments.check_input(x, caller=label)
    if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
        return x.astype(jnp.promote_types(dtype, x.dtype))
    return x


def axes_of(label: str, x: jax.Array, given: Axes, name: str) -> tuple[int, ...]:
    """Return axes as sorted, non-negative integers."""
    return axes.canonicalize_axes(given, x.ndim, caller=label, name=name)


def sizes_of(x: jax.Array, features: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of the feature axes, the shape of parameters."""
    return tuple(x.shape[axis] for axis in features)


def check_num_features(
    label: str, x: jax.Array, features: tuple[int, ...], num_features: int
) -> None:
    """Raise unless `x` has the features that an nnx module was built for."""
    if math.prod(sizes_of(x, features)) != num_features:
        raise ValueError(
            f"{label}: num_features must be the size of axes {features} of x. Received "
            f"x with shape {x.shape} for num_features={num_features}; build the module "
            "for this input, or name other axes."
        )


def parameter(
    label: str,
    name: str,
    x: jax.Array,
    features: tuple[int, ...],
    own: jax.Array | None,
    given: ArrayLike | None,
) -> jax.Array | None:
    """Return the module's own scale or bias, or the one given at call time.

    It has the rank of `x`, and its own dtype, which that of the output may depend on.
    `own` is None where the module has none.
    """
    if own is not None and given is not None:
        raise ValueError(
            f"{label}: a {name} given at call time takes the place of the module's own."
            f" Received both; build the module with use_{name}=False."
        )
    if own is not None:
        given = own.reshape(sizes_of(x, features))
    return arguments.expand_parameter(
        given, x, features, caller=label, name=name, keep_dtype=True
    )


def normalize(
    module: Any,
    label: str,
    x: jax.Array,
    plan: Plan,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    mask: ArrayLike | None,
    dtype: Any,
    synchronize: bool = True,
) -> jax.Array:
    """Normalize by the moments over the reduced axes, and over devices."""
    name = module.axis_name if synchronize else None
    groups = module.axis_index_groups if synchronize else None
    weights = arguments.expand_weights(mask, x, caller=label)
    if plan.reduced:
        axes.check_reduced(x, plan.reduced, name, caller=label)
    eps = arguments.check_eps(module.epsilon, caller=label)
    scale, bias = (None if v is None else arguments.widen(v, x) for v in (scale, bias))
    operands = Operands(x, weights, scale, bias, eps)
    groups = axes.check_axis_name(name, groups, caller=label)
    dtype = arguments.check_dtype(dtype, x, caller=label)
    over = Reduction(plan.reduced, name, groups, plan.centered)
    if plan.groups is not None:
        (channel,) = plan.features
        spatial = tuple(axis for axis in plan.reduced if axis != channel)
        over = over._replace(axis=spatial, channel_groups=(channel, plan.groups))
    return normalize_by_moments(operands, over, Output(dtype, apart=False))[0]


def decay_of(module: Any) -> Any:
    """Return the decay: `momentum`, unless the functional word is used."""
    return module.momentum if isinstance(module.decay, str) else module.decay


def has_weight(module: Any) -> bool:
    """Whether running statistics say how much evidence they hold.

    Without, they are Flax's average from (0, 1), which holds a full weight of 1.
    """
    return module.debias or decay_of(module) is None


def first_stats(module: Any, sizes: tuple[int, ...], dtype: Any) -> NormStats:
    """Return the running statistics that a BatchNorm starts with."""
    prior_weight = 0.0 if has_weight(module) else 1.0
    dtype = arguments.statistics_dtype(dtype)
    return init_stats(sizes, prior_weight=prior_weight, dtype=dtype)


def flag(value: Any) -> bool | jax.Array:
    """Return a Python bool, or an array, which may be traced."""
    return value.astype(bool) if isinstance(value, jax.Array) else bool(value)


def opposite(value: Any) -> bool | jax.Array:
    """Return the opposite of a flag."""
    return jnp.logical_not(value) if isinstance(value, jax.Array) else not value


def check_stats(
    label: str, x: jax.Array, features: tuple[int, ...], stats: NormStats
) -> None:
    """Raise unless the running statistics are those of this layer."""
    sizes = sizes_of(x, features)
    if stats.mean.shape != sizes or stats.var.shape != sizes:
        raise ValueError(
            f"{label}: the running statistics must have shape {sizes}, the sizes of "
            f"axes {features} of x. Received a mean with shape {stats.mean.shape} and "
            f"a variance with shape {stats.var.shape} for x with shape {x.shape}; they "
            "may be those of another layer, or of another model."
        )


def normalize_batch(
    module: Any,
    label: str,
    x: jax.Array,
    stats: NormStats,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    training: bool | jax.Array,
    mask: ArrayLike | None,
    dtype: Any,
    synchronize: bool = True,
) -> tuple[jax.Array, NormStats]:
    """Normalize by the batch or by running statistics."""
    features = axes_of(label, x, module.axis, "axis")
    # Evaluation looks at no batch; as in Flax it runs where no device axis is bound.
    pooling = synchronize and training is not False
    name = module.axis_name if pooling else None
    # Statistics in half precision, or real ones of complex input, come from elsewhere.
    mean_dtype = jnp.promote_types(
        arguments.statistics_dtype(x.dtype), stats.mean.dtype
    )
    if not jnp.iscomplexobj(x):
        mean_dtype = arguments.statistics_dtype(stats.mean.dtype)
    stats = NormStats(
        stats.mean.astype(mean_dtype),
        stats.var.astype(arguments.statistics_dtype(stats.var.dtype)),
        stats.weight,
    )
    alone = len(features) == x.ndim and name is None
    if alone:  # give it an axis to reduce
        x = x[None]
        scale = None if scale is None else scale[None]
        bias = None if bias is None else bias[None]
        features = tuple(axis + 1 for axis in features)
    with errors_named(label):
        y, stats = batch_norm(
            x,
            stats,
            scale,
            bias,
            training=training,
            decay=decay_of(module),
            eps=module.epsilon,
            feature_axis=features,
            weights=mask,
            axis_name=name,
            axis_index_groups=module.axis_index_groups if pooling else None,
            ddof=module.ddof,
            dtype=dtype,
        )
    return (y[0] if alone else y), stats


def spectrally_normalized(
    module: Any,
    label: str,
    kernel: jax.Array,
    stats: SpectralStats,
    update: bool | jax.Array,
) -> tuple[jax.Array, SpectralStats]:
    """Divide a kernel by its largest singular value."""
    dtype = canonicalize_dtype(kernel, *stats, dtype=module.dtype)
    with errors_named(label):
        return spectral_norm(
            kernel,
            stats,
            training=update,
            n_steps=module.n_steps,
            eps=module.epsilon,
            dtype=dtype,
        )


def has_spectrum(module: Any, kernel: Any, what: str) -> bool:
    """Whether spectral norm applies: not to biases, nor with no step to take."""
    if kernel.ndim <= 1 or module.n_steps < 1:
        return False
    if kernel.ndim > 2 and module.error_on_non_matrix:
        raise ValueError(f"{what} is {kernel.ndim}D but error_on_non_matrix is True")
    return True


def weight_scale_shape(module: Any, label: str, kernel: Any) -> tuple[int, ...]:
    """Return the shape of the lengths that weight norm learns."""
    given = () if module.feature_axes is None else module.feature_axes
    return sizes_of(kernel, axes_of(label, kernel, given, "feature_axes"))


def length_normalized(
    module: Any, label: str, kernel: jax.Array, scale: jax.Array | None
) -> jax.Array:
    """Give a kernel the lengths `scale`."""
    dtype = canonicalize_dtype(kernel, scale, dtype=module.dtype)
    with errors_named(label):
        return weight_norm(
            kernel,
            scale,
            feature_axis=module.feature_axes,
            eps=module.epsilon,
            dtype=dtype,
        )
