"""Flax nnx's norms of the kernels of a layer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, InitVar
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, initializers
from flax.typing import Dtype, Initializer, PromoteDtypeFn

from jaxnorm.axes import Axes
from jaxnorm.flax_shared import weight_norms
from jaxnorm.options import Flag
from jaxnorm.spectral import SpectralStats

Path = tuple[Any, ...]


@contextmanager
def _changed(
    layer: nnx.Module, change: Callable[[Path, nnx.Variable[Any]], jax.Array | None]
) -> Iterator[None]:
    """Give the layer other parameters, and its own back afterwards.

    The optimizer goes on from its own: what is normalized in place would be lost.
    """
    held = []
    try:
        for path, variable in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
            own, changed = variable[...], change(path, variable)
            if changed is not None:
                held.append((variable, own))
                variable.set_value(changed)
        yield
    finally:
        for variable, own in held:
            variable.set_value(own)


@nnx.dataclass(eq=False)
class SpectralNorm(nnx.Module):
    """Divide the kernels of a layer by their largest singular values.

        w = kernel / sigma

    The layer keeps its kernels, except while it is called (so not from two threads at
    once). For every kernel of two axes or more, `batch_stats` holds the `nnx.BatchStat`
    variables `sigma`, an estimate of the largest singular value, and `u`, one of its
    singular vector.

    Arguments that are not listed are those of `flax.nnx.SpectralNorm`.

    Args:
      layer_instance: the layer.
      n_steps: steps of power iteration.
      error_on_non_matrix: refuse kernels of more than two axes, of which the leading
        ones are otherwise taken together.
      update_stats: whether to keep the new `u` and `sigma`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnorm.nnx import SpectralNorm
      >>> rngs = nnx.Rngs(0)
      >>> layer = SpectralNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
      >>> layer(jnp.ones((1, 3))).shape
      (1, 4)

    Reference:
      Miyato, Kataoka, Koyama and Yoshida, Spectral normalization for generative
      adversarial networks, 2018, arXiv:1802.05957.
    """

    layer_instance: nnx.Module
    _: KW_ONLY
    n_steps: int = 1
    epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    error_on_non_matrix: bool = False
    update_stats: InitVar[bool] = True
    rngs: InitVar[nnx.Rngs]

    def __post_init__(self, update_stats: bool, rngs: nnx.Rngs) -> None:
        """Make the variables."""
        # The name that train() and eval() set.
        self.use_running_average = not update_stats
        batch_stats = {}
        for path, kernel in nnx.to_flat_state(
            nnx.state(self.layer_instance, nnx.Param)
        ):
            if not self._has_spectrum(kernel):
                continue
            key, shape = rngs.params(), (1, kernel.shape[-1])
            u = initializers.normal()(key, shape, self.param_dtype)
            batch_stats[*path, "u"] = nnx.BatchStat(u)
            batch_stats[*path, "sigma"] = nnx.BatchStat(jnp.ones((), self.param_dtype))
        self.batch_stats = nnx.data(batch_stats)

    def __call__(self, x: Any, update_stats: Flag | None = None) -> Any:
        """Call the layer with normalized kernels.

        Args:
          x: for the layer.
          update_stats: whether to keep the new `u` and `sigma`; None takes what the
            constructor, `train()` or `eval()` said.

        Returns:
          What the layer returns.
        """
        given = not self.use_running_average if update_stats is None else update_stats
        update = weight_norms.check_update(type(self).__name__, given)

        def change(path: Path, kernel: nnx.Variable[Any]) -> jax.Array | None:
            if not self._has_spectrum(kernel):
                return None
            u, sigma = (self._stat((*path, name)) for name in ("u", "sigma"))
            changed, stats = weight_norms.spectrally_normalized(
                self,
                type(self).__name__,
                kernel[...],
                SpectralStats(u[...], sigma[...]),
                update,
            )
            if update is not False:
                u.set_value(stats.u)
                sigma.set_value(stats.sigma)
            return changed

        with _changed(self.layer_instance, change):
            return self.layer_instance(x)

    def _has_spectrum(self, kernel: nnx.Variable[Any]) -> bool:
        return weight_norms.has_spectrum(
            self, type(self).__name__, "Layer instance parameter", kernel
        )

    def _stat(self, path: Path) -> nnx.Variable[Any]:
        return _found(self, self.batch_stats, path)


@nnx.dataclass(eq=False)
class WeightNorm(nnx.Module):
    """Give the kernels of a layer lengths that are learned apart from directions.

        w = scale * kernel / sqrt(sum(|kernel|^2) + epsilon)

    The layer keeps its kernels; `scales` holds the lengths, one `nnx.Param` a kernel.
    Those of Flax before 0.12.11 are plain arrays, which an optimizer of `nnx.Param`
    never changes; checkpoints of `nnx.to_pure_dict(nnx.state(...))` load in both
    directions.

    Arguments that are not listed are those of `flax.nnx.WeightNorm`.

    Args:
      layer_instance: the layer.
      feature_axes: axes of a kernel that keep lengths of their own; None is one length
        for all.
      variable_filter: which parameters are normalized.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnorm.nnx import WeightNorm
      >>> rngs = nnx.Rngs(0)
      >>> layer = WeightNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
      >>> layer.scales["kernel",].shape
      (4,)

    Reference:
      Salimans and Kingma, Weight normalization, 2016, arXiv:1602.07868.
    """

    layer_instance: nnx.Module
    _: KW_ONLY
    feature_axes: Axes | None = -1
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    variable_filter: Any = nnx.PathContains("kernel")
    promote_dtype: PromoteDtypeFn = dtypes.promote_dtype
    rngs: InitVar[nnx.Rngs]

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        """Make the variables."""
        self.variable_filter = nnx.filterlib.to_predicate(self.variable_filter)
        self.scales: dict[Path, nnx.Param[jax.Array]] | None = None
        if not self.use_scale:
            return
        key, scales = _key_beside(rngs.params), {}
        for path, kernel in nnx.to_flat_state(
            nnx.state(self.layer_instance, nnx.Param)
        ):
            if self.variable_filter(path, kernel):
                key, own = jax.random.split(key)
                shape = weight_norms.scale_shape(self, type(self).__name__, kernel)
                scales[path] = nnx.Param(self.scale_init(own, shape, self.param_dtype))
        self.scales = nnx.data(scales)

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with normalized kernels.

        Args:
          x: for the layer.
          *args: for the layer.
          **kwargs: for the layer.

        Returns:
          What the layer returns.
        """

        def change(path: Path, kernel: nnx.Variable[Any]) -> jax.Array | None:
            if not self.variable_filter(path, kernel):
                return None
            scale = None
            if self.scales is not None:
                scale = _found(self, self.scales, path)[...]
            return weight_norms.length_normalized(
                self, type(self).__name__, kernel[...], scale
            )

        with _changed(self.layer_instance, change):
            return self.layer_instance(x, *args, **kwargs)


def _key_beside(stream: nnx.RngStream) -> jax.Array:
    """Return a key that the stream never gives out, and leave the stream as it is.

    Flax draws none for WeightNorm: the layers that are built next would begin with
    other parameters than with Flax's.
    """
    following = jax.random.fold_in(stream.key[...], stream.count[...])
    return jax.random.fold_in(following, 2**31)


def _found(module: nnx.Module, variables: Mapping[Path, Any], path: Path) -> Any:
    """Return the variable that belongs to a parameter of the layer."""
    if path not in variables:
        raise ValueError(
            f"{type(module).__name__}: the parameters of the layer must stay those it "
            f"had when it was wrapped. Received a new one at {path}; wrap the layer "
            "again."
        )
    return variables[path]
