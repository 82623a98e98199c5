"""Flax linen's normalization modules, on the functional core.

Class names, arguments and their order, defaults, parameters and collections are those
of `flax.linen`, so that the import is all that changes and checkpoints load in both
directions. Arguments that are not explained here are Flax's. What is added comes last
and leaves Flax's behaviour as it is:

- `mask` may hold fractional weights; it broadcasts to the input.
- `scale` and `bias` may be given at call time, as conditional norms do: per feature, or
  of the rank of the input. Build the module with `use_scale=False, use_bias=False`.

Where Flax is wrong, these modules are right: masked statistics across devices, empty
masks, data with a large offset, statistics of half-precision modules. A batch whose
statistics are not finite leaves the running ones alone. `use_fast_variance` and
`force_float32_reductions` are accepted and change nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype, Initializer
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxnorm import flax_shared as shared
from jaxnorm.axes import Axes, AxisGroups, AxisName
from jaxnorm.flax_shared import MOMENTUM, Plan
from jaxnorm.running import NormStats
from jaxnorm.weight_norms import SpectralStats

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "SpectralNorm",
    "WeightNorm",
]

STATS = "batch_stats"


def label_of(module: nn.Module) -> str:
    """Return the module's name and path, for errors."""
    path = "/".join(module.path)
    return f"{type(module).__name__} at {path!r}" if path else type(module).__name__


class _Norm(nn.Module):
    """Declares scale and bias. Helpers are kept out of summaries by `nowrap`."""

    @nn.nowrap
    def _parameters(
        self,
        x: jax.Array,
        features: tuple[int, ...],
        scale: ArrayLike | None,
        bias: ArrayLike | None,
    ) -> tuple[jax.Array | None, jax.Array | None, Any]:
        """Return scale and bias of the rank of `x`, and the dtype of the output."""

        def find(name: str, given: ArrayLike | None) -> jax.Array | None:
            own = None
            if getattr(self, f"use_{name}", False):
                init = getattr(self, f"{name}_init")
                shape = shared.sizes_of(x, features)
                own = self.param(name, init, shape, self.param_dtype)
            return shared.parameter(label_of(self), name, x, features, own, given)

        gamma, beta = find("scale", scale), find("bias", bias)
        return gamma, beta, canonicalize_dtype(x, gamma, beta, dtype=self.dtype)


class _PerExample(_Norm):
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
        x = shared.check_input(label, x, self.dtype)
        plan = self._plan(label, x)
        gamma, beta, dtype = self._parameters(x, plan.features, scale, bias)
        return shared.normalize(
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
        raise NotImplementedError


class BatchNorm(_Norm):
    r"""Normalize every feature by its statistics over the batch.

    .. math::
      y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    The running mean and variance are `mean` and `var` in the collection `batch_stats`,
    at least float32. Training needs `mutable=["batch_stats"]`; nothing is updated while
    the module is initialized.

    Attributes:
      axis: the feature axis, or axes; all others are reduced.
      momentum: the weight of the old running value.
      debias: start the average at the first batch, instead of at mean 0 and variance 1.
        `weight` in `batch_stats` says how much evidence there is.
      ddof: 1 keeps the unbiased running variance, as PyTorch does.
      decay: the functional API's word for `momentum`, in place of which it is used;
        None is the equal-weight average of all batches, and needs `weight` as well.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm import linen as nn
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> norm = nn.BatchNorm(use_running_average=False, momentum=0.9)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
      >>> print(y.round(3), updates["batch_stats"]["mean"])
      [[-1. -1.]
       [ 1.  1.]] [0.2 2. ]

    Reference:
      Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167.
    """

    use_running_average: bool | jax.Array | None = None
    axis: Axes = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: AxisGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    debias: bool = False
    ddof: int = 0
    decay: float | str | None = MOMENTUM

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | jax.Array | None = None,
        *,
        mask: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalize `x`.

        Args:
          x: array of a floating-point or complex dtype.
          use_running_average: True normalizes by the running statistics, False by the
            batch, and updates them; a traced bool compiles both into one program.
          mask: bool mask or weights that broadcast to `x`.
          scale: gamma, where the module has none of its own.
          bias: beta, likewise.

        Returns:
          Array of the shape of `x`.

        Raises:
          TypeError: if `x` is neither floating-point nor complex.
          ValueError: if shapes disagree, or `batch_stats` is missing or, in training,
            not mutable.
        """
        label = label_of(self)
        evaluating: Any = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        training = shared.opposite(evaluating)
        x = shared.check_input(label, x, self.dtype)
        features = shared.axes_of(label, x, self.axis, "axis")
        self._check_collection(training)
        stats = shared.first_stats(self, shared.sizes_of(x, features), x.dtype)
        names = NormStats._fields[: 3 if shared.has_weight(self) else 2]
        stored = {
            name: self.variable(STATS, name, lambda leaf: leaf, getattr(stats, name))
            for name in names
        }
        stats = stats._replace(**{name: stored[name].value for name in names})
        shared.check_stats(label, x, features, stats)
        gamma, beta, dtype = self._parameters(x, features, scale, bias)
        y, stats = shared.normalize_batch(
            self,
            label,
            x,
            stats,
            gamma,
            beta,
            training=training,
            mask=mask,
            dtype=dtype,
            synchronize=not self.is_initializing(),
        )
        if training is not False and not self.is_initializing():
            for name in names:
                stored[name].value = getattr(stats, name)
        return y

    @nn.nowrap
    def _check_collection(self, training: bool | jax.Array) -> None:
        if self.is_initializing() or self.is_mutable_collection(STATS):
            return
        if training is not False:
            raise ValueError(
                f"{label_of(self)}: training updates the running statistics, so their "
                "collection must be mutable. Received apply(...) without it; pass "
                f"mutable=[{STATS!r}], which returns (output, updates), or "
                "use_running_average=True."
            )
        if not (self.has_variable(STATS, "mean") and self.has_variable(STATS, "var")):
            raise ValueError(
                f"{label_of(self)}: use_running_average=True needs running statistics. "
                f"Received variables without them; pass {{'params': ..., {STATS!r}: "
                "...} as init and training return them."
            )


class LayerNorm(_PerExample):
    r"""Normalize over the features of every example.

    .. math::
      y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Attributes:
      reduction_axes: axes that are normalized together.
      feature_axes: axes that scale and bias belong to.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm import linen as nn
      >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
      >>> y, variables = nn.LayerNorm().init_with_output(jax.random.key(0), x)
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
        return shared.layer_plan(label, x, self.reduction_axes, self.feature_axes)


class RMSNorm(_PerExample):
    r"""Divide every example by its root mean square.

    .. math::
      y = \gamma \frac{x}{\sqrt{\frac1n \sum_i |x_i|^2 + \epsilon}}

    Attributes:
      reduction_axes: axes that are normalized together.
      feature_axes: axes that scale belongs to.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm import linen as nn
      >>> x = jnp.array([[3.0, 4.0, 0.0, 0.0]])
      >>> y, variables = nn.RMSNorm().init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[1.2 1.6 0.  0. ]]

    Reference:
      Zhang and Sennrich, Root mean square layer normalization, 2019, arXiv:1910.07467.
    """

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
        return shared.layer_plan(
            label, x, self.reduction_axes, self.feature_axes, centered=False
        )


class GroupNorm(_PerExample):
    r"""Normalize groups of neighbouring channels of every example.

    .. math::
      y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Attributes:
      num_groups: number of groups; None where `group_size` is given.
      group_size: channels of a group.
      reduction_axes: axes that are normalized together, the channels among them; by
        default all but the first.
      feature_axis: the axis of channels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm import linen as nn
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> y, variables = nn.GroupNorm(2).init_with_output(jax.random.key(0), x)
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
        return shared.group_plan(
            label,
            x,
            self.num_groups,
            self.group_size,
            self.reduction_axes,
            self.feature_axis,
        )


class InstanceNorm(_PerExample):
    r"""Normalize every channel of every example over space.

    .. math::
      y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Attributes:
      feature_axes: axes of channels; all others but the first are reduced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm import linen as nn
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> y, variables = nn.InstanceNorm().init_with_output(jax.random.key(0), x)
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
        return shared.instance_plan(label, x, self.feature_axes)


class _Reparametrized(_Norm):
    """Calls a layer with other kernels than those it holds."""

    @nn.nowrap
    def _call(
        self, change: Callable[[str, Any], Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call the layer with its parameters replaced by `change(path, parameter)`."""

        def change_all(variables: Any) -> Any:
            def named(path: Any, leaf: Any) -> Any:
                inner = jax.tree_util.keystr(path[1:], simple=True, separator="/")
                return change(f"{self.layer_instance.name}/{inner}", jnp.asarray(leaf))

            return jax.tree_util.tree_map_with_path(named, variables)

        mapped = nn.map_variables(
            lambda layer: layer(*args, **kwargs),
            trans_in_fn=change_all,
            init=self.is_initializing(),
            mutable=True,
        )
        return mapped(self.layer_instance)


class SpectralNorm(_Reparametrized):
    r"""Divide the kernels of a layer by their largest singular values.

    .. math::
      w = v / \sigma(v)

    The parameters stay in the layer. `batch_stats` holds `u`, an estimate of a singular
    vector, and `sigma`, for every kernel of two axes or more.

    Attributes:
      layer_instance: the layer.
      n_steps: steps of power iteration.
      error_on_non_matrix: refuse kernels of more than two axes, of which the leading
        ones are otherwise taken together.
      collection_name: the collection of `u` and `sigma`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flax.linen
      >>> from jaxnorm import linen as nn
      >>> layer = nn.SpectralNorm(flax.linen.Dense(4))
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
    def __call__(self, *args: Any, update_stats: bool, **kwargs: Any) -> Any:
        """Call the layer with normalized kernels.

        Args:
          *args: for the layer.
          update_stats: whether to keep the new `u` and `sigma`.
          **kwargs: for the layer.

        Returns:
          What the layer returns.
        """

        update = shared.flag(update_stats)

        def change(path: str, kernel: jax.Array) -> jax.Array:
            if not shared.has_spectrum(self, kernel, "Input"):
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
            kernel, stats = shared.spectrally_normalized(
                self, label_of(self), kernel, stats, update
            )
            if update is not False:
                u.value, sigma.value = stats
            return kernel

        return self._call(change, *args, **kwargs)


class WeightNorm(_Reparametrized):
    r"""Give the kernels of a layer lengths that are learned apart from directions.

    .. math::
      w = g \frac{v}{\sqrt{\lVert v \rVert_2^2 + \epsilon}}

    The lengths are parameters of this module, named after the kernel, `.../scale`.

    Attributes:
      layer_instance: the layer.
      feature_axes: axes of a kernel that keep lengths of their own; None is one length
        for all.
      variable_filter: strings; parameters whose path holds one of them are normalized.
        Empty or None means all.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flax.linen
      >>> from jaxnorm import linen as nn
      >>> layer = nn.WeightNorm(flax.linen.Dense(4))
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
                shape = shared.weight_scale_shape(self, label_of(self), kernel)
                scale = self.param(
                    f"{path}/scale", self.scale_init, shape, self.param_dtype
                )
            return shared.length_normalized(self, label_of(self), kernel, scale)

        return self._call(change, *args, **kwargs)
