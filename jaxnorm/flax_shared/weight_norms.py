"""SpectralNorm and WeightNorm: the kernels they apply to, and what becomes of them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax.typing import ArrayLike

from jaxnorm import options
from jaxnorm.flax_shared import inputs
from jaxnorm.spectral import SpectralStats, spectral_norm
from jaxnorm.weight_norms import weight_norm


def check_update(label: str, update_stats: Any) -> bool | jax.Array:
    """Return whether SpectralNorm keeps its new statistics."""
    mend = "it says whether the new u and sigma are kept"
    return inputs.check_flag(label, "update_stats", update_stats, mend=mend)


def spectrally_normalized(
    module: Any,
    label: str,
    kernel: jax.Array,
    stats: SpectralStats,
    update: bool | jax.Array,
) -> tuple[jax.Array, SpectralStats]:
    """Divide a kernel by its largest singular value.

    As in Flax, a kernel of zeros resets its singular vector to 0, and is never
    normalized again: otherwise a parameter that starts at zero would be divided by its
    own first update.
    """
    dtype = canonicalize_dtype(kernel, *stats, dtype=module.dtype)
    eps = _check_epsilon(module, label)
    with inputs.errors_named(label):
        changed, stats = spectral_norm(
            kernel,
            stats,
            training=update,
            n_steps=module.n_steps,
            eps=eps,
            dtype=dtype,
        )
    lost = jnp.logical_and(update, jnp.all(kernel == 0))
    return changed, stats._replace(u=jnp.where(lost, 0, stats.u))


def has_spectrum(module: Any, label: str, what: str, kernel: Any) -> bool:
    """Whether spectral norm applies: not to biases, nor with no step to take."""
    if kernel.ndim <= 1 or module.n_steps < 1:
        return False
    if kernel.ndim > 2 and module.error_on_non_matrix:
        raise ValueError(
            f"{label}: {what} is {kernel.ndim}D but error_on_non_matrix is True. "
            f"Received a kernel with shape {kernel.shape}; leave error_on_non_matrix "
            "out, and all axes but the last become rows."
        )
    return True


def scale_shape(module: Any, label: str, kernel: Any) -> tuple[int, ...]:
    """Return the shape of the lengths that weight norm learns."""
    given = () if module.feature_axes is None else module.feature_axes
    return inputs.sizes_of(kernel, inputs.axes_of(label, kernel, given, "feature_axes"))


def length_normalized(
    module: Any, label: str, kernel: jax.Array, scale: jax.Array | None
) -> jax.Array:
    """Give a kernel the lengths `scale`."""
    dtype = canonicalize_dtype(kernel, scale, dtype=module.dtype)
    eps = _check_epsilon(module, label)
    with inputs.errors_named(label):
        return weight_norm(
            kernel,
            scale,
            feature_axis=module.feature_axes,
            eps=eps,
            dtype=dtype,
        )


def _check_epsilon(module: Any, label: str) -> ArrayLike:
    return options.check_eps(
        module.epsilon, caller=label, name="epsilon", usual="1e-12"
    )
