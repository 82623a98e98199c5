"""Flax linen's norms of the kernels of a layer."""

from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax.nn import initializers

from jaxnorm.axes import Axes
from jaxnorm.flax_shared import weight_norms
from jaxnorm.linen.base import STATS, label_of
from jaxnorm.options import Flag
from jaxnorm.spectral import SpectralStats


class Reparametrized(nn.Module):
    """Calls a layer with other kernels than those it holds."""

    @nn.nowrap
    def _call(
        self,
        change: Callable[[str, Any], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        write_back: bool,
    ) -> Any:
        """Call the layer with its parameters replaced by `change(path, parameter)`.

        Those go back to the layer where `params` is mutable if `write_back`.
        """

        def change_all(variables: Any) -> Any:
            def named(path: Any, leaf: Any) -> Any:
                inner = jax.tree_util.keystr(path[1:], simple=True, separator="/")
                return change(f"{self.layer_instance.name}/{inner}", jnp.asarray(leaf))

            return jax.tree_util.tree_map_with_path(named, variables)

        mapped = nn.map_variables(
            lambda layer: layer(*args, **kwargs),
            trans_in_fn=change_all,
            init=self.is_initializing(),
            mutable=write_back,
        )
        return mapped(self.layer_instance)


class SpectralNorm(Reparametrized):
    """Divide the kernels of a layer by their largest singular values.

        w = kernel / sigma

    The parameters stay in the layer. For every kernel of two axes or more,
    `batch_stats` holds `sigma`, an estimate of the largest singular value, and `u`, one
    of its singular vector.

    Arguments that are not listed are those of `flax.linen.SpectralNorm`.

    Attributes:
      layer_instance: the layer.
      n_steps: steps of power iteration.
      error_on_non_matrix: refuse kernels of more than two axes, of which the leading
        ones are otherwise taken together.
      collection_name: the collection of `u` and `sigma`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flax.linen
      >>> import jaxnorm.linen
      >>> layer = jaxnorm.linen.SpectralNorm(flax.linen.Dense(4))
      >>> x = jnp.ones((1, 3))
      >>> variables = layer.init(jax.random.key(0), x, update_stats=False)
      >>> y, updates = layer.apply(
      ...     variables, x, update_stats=True, mutable=["batch_stats"]
      ... )
      >>> y.shape
      (1, 4)

    Reference:
      Miyato, Kataoka, Koyama and Yoshida, Spectral normalization for generative
      adversarial networks, 2018, arXiv:1802.05957.
    """

    layer_instance: nn.Module
    n_steps: int = 1
    epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    error_on_non_matrix: bool = False
    collection_name: str = STATS

    @nn.compact
    def __call__(self, *args: Any, update_stats: Flag, **kwargs: Any) -> Any:
        """Call the layer with normalized kernels.

        Args:
          *args: for the layer.
          update_stats: whether to keep the new `u` and `sigma`.
          **kwargs: for the layer.

        Returns:
          What the layer returns.
        """

        update = weight_norms.check_update(label_of(self), update_stats)

        def change(path: str, kernel: jax.Array) -> jax.Array:
            if not weight_norms.has_spectrum(self, label_of(self), "Input", kernel):
                return kernel
            collection = self.collection_name
            has_u = self.has_variable(collection, f"{path}/u")
            u = self.variable(
                collection,
                f"{path}/u",
                jax.random.normal,
                None if has_u else self.make_rng("params"),
                (1, kernel.shape[-1]),
                self.param_dtype,
            )
            sigma = self.variable(
                collection, f"{path}/sigma", jnp.ones, (), self.param_dtype
            )
            stats = SpectralStats(u.value, sigma.value)
            kernel, stats = weight_norms.spectrally_normalized(
                self, label_of(self), kernel, stats, update
            )
            if update is not False:
                u.value, sigma.value = stats
            return kernel

        return self._call(change, args, kwargs, write_back=True)


class WeightNorm(Reparametrized):
    """Give the kernels of a layer lengths that are learned apart from directions.

        w = scale * kernel / sqrt(sum(|kernel|^2) + epsilon)

    The lengths are parameters of this module, named after the kernel, `.../scale`.

    Arguments that are not listed are those of `flax.linen.WeightNorm`.

    Attributes:
      layer_instance: the layer.
      feature_axes: axes of a kernel that keep lengths of their own; None is one length
        for all.
      variable_filter: strings; parameters whose path holds one of them are normalized.
        Empty or None means all.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flax.linen
      >>> import jaxnorm.linen
      >>> layer = jaxnorm.linen.WeightNorm(flax.linen.Dense(4))
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> variables["params"]["layer_instance/kernel/scale"].shape
      (4,)

    Reference:
      Salimans and Kingma, Weight normalization, 2016, arXiv:1602.07868.
    """

    layer_instance: nn.Module
    epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    feature_axes: Axes | None = -1
    variable_filter: Iterable[str] | None = field(default_factory=lambda: {"kernel"})

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with normalized kernels.

        Args:
          *args: for the layer.
          **kwargs: for the layer.

        Returns:
          What the layer returns.
        """

        def change(path: str, kernel: jax.Array) -> jax.Array:
            wanted = self.variable_filter
            if wanted and not any(part in path for part in wanted):
                return kernel
            scale = None
            if self.use_scale:
                shape = weight_norms.scale_shape(self, label_of(self), kernel)
                scale = self.param(
                    f"{path}/scale", self.scale_init, shape, self.param_dtype
                )
            return weight_norms.length_normalized(self, label_of(self), kernel, scale)

        return self._call(change, args, kwargs, write_back=False)
