"""BatchNorm: where its running statistics start, and how it moves or uses them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import axes, dtypes, options
from jaxnorm.flax_shared import inputs
from jaxnorm.norms.batch import batch_norm
from jaxnorm.stats import NormStats, init_stats

MOMENTUM = "momentum"  # the default of `decay`: what Flax's `momentum` says


def decay_of(module: Any) -> Any:
    """Return the decay: `momentum`, unless the functional word is used."""
    return module.momentum if _name_of_decay(module) == MOMENTUM else module.decay


def has_weight(module: Any) -> bool:
    """Whether running statistics say how much evidence they hold.

    Without, they are Flax's average from (0, 1), which holds a full weight of 1.
    """
    return module.debias or decay_of(module) is None


def stored_names(module: Any) -> tuple[str, ...]:
    """Return the parts of its running statistics that a BatchNorm stores."""
    return NormStats._fields if has_weight(module) else ("mean", "var")


def first_stats(
    module: Any, sizes: int | tuple[int, ...], dtype: DTypeLike
) -> NormStats:
    """Return the running statistics that a BatchNorm starts with."""
    prior_weight = 0.0 if has_weight(module) else 1.0
    dtype = dtypes.statistics_dtype(dtype)
    return init_stats(sizes, prior_weight=prior_weight, dtype=dtype)


def check_stored_stats(
    label: str, x: jax.Array, features: tuple[int, ...], stats: NormStats
) -> None:
    """Raise unless the running statistics are those of this layer.

    The core's error would say to start with `init_stats`.
    """
    sizes = inputs.sizes_of(x, features)
    if stats.mean.shape != sizes or stats.var.shape != sizes:
        raise ValueError(
            f"{label}: the running statistics must have shape {sizes}, "
            f"{axes.sizes_in_words(features)} of x. Received a mean with shape "
            f"{stats.mean.shape} and a variance with shape {stats.var.shape} for x "
            f"with shape {x.shape}; they may be those of another layer, or of another "
            "model."
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
    dtype: DTypeLike | None,
    synchronize: bool = True,
) -> tuple[jax.Array, NormStats]:
    """Normalize by the batch or by running statistics."""
    features = inputs.axes_of(label, x, module.axis, "axis")
    # Evaluation looks at no batch; as in Flax it runs where no device axis is bound.
    pooling = synchronize and training is not False
    name = module.axis_name if pooling else None
    # Under the names they have here; the rest of what is checked has the core's.
    options.check_eps(module.epsilon, caller=label, name="epsilon")
    options.check_decay(decay_of(module), caller=label, name=_name_of_decay(module))
    reduced = axes.complement(features, x.ndim)
    weights = inputs.weights_of(label, x, mask, reduced)
    alone = len(features) == x.ndim and name is None
    if alone:  # give it an axis to reduce
        x = x[None]
        weights = None if weights is None else weights[None]
        scale = None if scale is None else scale[None]
        bias = None if bias is None else bias[None]
        features = tuple(axis + 1 for axis in features)
    with inputs.errors_named(label):
        y, stats = batch_norm(
            x,
            _widened(stats, x),
            scale,
            bias,
            training=training,
            decay=decay_of(module),
            eps=module.epsilon,
            feature_axis=features,
            weights=weights,
            axis_name=name,
            axis_index_groups=module.axis_index_groups if pooling else None,
            ddof=module.ddof,
            dtype=dtype,
        )
    return (y[0] if alone else y), stats


def _name_of_decay(module: Any) -> str:
    """Return by which of the two words the decay was given."""
    given = module.decay
    return MOMENTUM if isinstance(given, str) and given == MOMENTUM else "decay"


def _widened(stats: NormStats, x: jax.Array) -> NormStats:
    """Return statistics in at least float32, and a complex mean of complex input.

    Those that come from elsewhere may be neither.
    """
    mean, var, weight = stats
    dtype = dtypes.statistics_dtype(mean.dtype)
    if jnp.iscomplexobj(x):
        dtype = jnp.promote_types(dtypes.statistics_dtype(x.dtype), dtype)
    real = (v.astype(dtypes.statistics_dtype(v.dtype)) for v in (var, weight))
    return NormStats(mean.astype(dtype), *real)
