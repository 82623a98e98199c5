"""Flax nnx's normalization modules, on the functional core.

Class names, arguments and their order, defaults, and variables with their names and
types are those of `flax.nnx`, so that the import is all that changes and checkpoints
load in both directions. Arguments that are not explained here are Flax's. What is added
comes last and leaves Flax's behaviour as it is:

- `mask` may hold fractional weights; it broadcasts to the input.
- `scale` and `bias` may be given at call time, as conditional norms do: per feature, or
  of the rank of the input. Build the module with `use_scale=False, use_bias=False`.
- `num_features` may be a tuple where there are several feature axes.

Where Flax is wrong, these modules are right: masked statistics across devices, empty
masks, data with a large offset, statistics of half-precision modules (`promote_dtype`
says the dtype of the output; nothing is rounded before). A batch whose statistics are
not finite leaves the running ones alone. SpectralNorm and WeightNorm leave the kernels
of their layer as they are, and the lengths of WeightNorm are learned. The argument
`use_fast_variance` is accepted and changes nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, InitVar
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from
from flax.nnx.nn import dtypes, initializers
from flax.typing import Dtype, Initializer, PromoteDtypeFn
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

Metadata = Mapping[str, Any]
NO_METADATA: Metadata = MappingProxyType({})
ZEROS = initializers.zeros_init()
ONES = initializers.ones_init()


@nnx.dataclass(eq=False)
class _Norm(nnx.Module):
    """Holds a scale, and normalizes by the moments of the input."""

    num_features: int | tuple[int, ...]
    _: KW_ONLY
    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_scale: bool = True
    axis_name: AxisName | None = None
    axis_index_groups: AxisGroups | None = None
    use_fast_variance: bool = True
    promote_dtype: PromoteDtypeFn = dtypes.promote_dtype
    scale_init: InitVar[Initializer] = ONES
    rngs: InitVar[nnx.Rngs]
    scale_metadata: InitVar[Metadata] = NO_METADATA

    def __post_init__(
        self, scale_init: Initializer, rngs: nnx.Rngs, scale_metadata: Metadata
    ) -> None:
        self.scale = self._declare(self.use_scale, scale_init, rngs, scale_metadata)

    def __call__(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        *,
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
        label = self._label
        x = shared.check_input(label, x, self.dtype)
        plan = self._plan(label, x)
        gamma, beta = self._parameters(label, x, plan.features, scale, bias)
        own = (gamma, beta) if hasattr(self, "bias") else (gamma,)
        dtype = self._output_dtype(x, *own)
        return shared.normalize(
            self, label, x, plan, gamma, beta, mask=mask, dtype=dtype
        )

    def _plan(self, label: str, x: jax.Array) -> Plan:
        raise NotImplementedError

    @property
    def _label(self) -> str:
        return f"{type(self).__name__}(num_features={self.num_features})"

    @property
    def _shape(self) -> tuple[int, ...]:
        n = self.num_features
        return tuple(n) if isinstance(n, Sequence) else (n,)

    def _declare(
        self, use: bool, init: Initializer, rngs: nnx.Rngs, metadata: Metadata
    ) -> nnx.Param[jax.Array] | None:
        if not use:
            return nnx.data(None)
        key = rngs.params()
        return nnx.Param(init(key, self._shape, self.param_dtype), **metadata)

    def _parameters(
        self,
        label: str,
        x: jax.Array,
        features: tuple[int, ...],
        scale: ArrayLike | None,
        bias: ArrayLike | None,
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Return scale and bias of the rank of `x`."""
        shared.check_num_features(label, x, features, math.prod(self._shape))

        def find(name: str, given: ArrayLike | None) -> jax.Array | None:
            variable = getattr(self, name, None)
            own = None if variable is None else variable[...]
            return shared.parameter(label, name, x, features, own, given)

        return find("scale", scale), find("bias", bias)

    def _output_dtype(self, *arrays: jax.Array | None) -> Any:
        """Return the dtype of the output: `dtype`, or what `promote_dtype` makes it."""
        if self.dtype is not None:
            return self.dtype

        def promote(*arrays: jax.Array | None) -> Any:
            return self.promote_dtype(arrays, dtype=None)

        promoted = jax.eval_shape(promote, *arrays)
        # The input and the parameters; between them are statistics, if there are any.
        kept = (promoted[0], *promoted[-2:])
        return jnp.result_type(*(a.dtype for a in kept if a is not None))


@nnx.dataclass(eq=False, kw_only=True)
class _AffineNorm(_Norm):
    """Holds a bias as well."""

    use_bias: bool = True
    bias_init: InitVar[Initializer] = ZEROS
    bias_metadata: InitVar[Metadata] = NO_METADATA

    def __post_init__(
        self,
        scale_init: Initializer,
        rngs: nnx.Rngs,
        scale_metadata: Metadata,
        bias_init: Initializer = ZEROS,
        bias_metadata: Metadata = NO_METADATA,
    ) -> None:
        super().__post_init__(scale_init, rngs, scale_metadata)
        self.bias = self._declare(self.use_bias, bias_init, rngs, bias_metadata)


@nnx.dataclass(eq=False, kw_only=True)
class BatchNorm(_AffineNorm):
    r"""Normalize every feature by its statistics over the batch.

    .. math::
      y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    The running mean and variance are the `nnx.BatchStat` variables `mean` and `var`, at
    least float32.

    Args:
      num_features: size of the feature axis, or sizes of several.
      axis: the feature axis, or axes; all others are reduced.
      momentum: the weight of the old running value.
      debias: start the average at the first batch, instead of at mean 0 and variance 1.
        The `nnx.BatchStat` `weight` says how much evidence there is.
      ddof: 1 keeps the unbiased running variance, as PyTorch does.
      decay: the functional API's word for `momentum`, in place of which it is used;
        None is the equal-weight average of all batches, and has a `weight` as well.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnorm.nnx import BatchNorm
      >>> norm = BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
      >>> print(y.round(3), norm.mean[...])
      [[-1. -1.]
       [ 1.  1.]] [0.2 2. ]

    Reference:
      Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167.
    """

    use_running_average: bool | None = False
    axis: Axes = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-5
    debias: bool = False
    ddof: int = 0
    decay: float | str | None = MOMENTUM

    def __post_init__(self, *init: Any) -> None:
        """Make the variables."""
        # The input is not known yet; only `dtype` announces a complex or float64 one.
        dtype = jnp.float32 if self.dtype is None else self.dtype
        stats = shared.first_stats(self, self._shape, dtype)
        self.mean = nnx.BatchStat(stats.mean)
        self.var = nnx.BatchStat(stats.var)
        if shared.has_weight(self):
            self.weight = nnx.BatchStat(stats.weight)
        super().__post_init__(*init)

    def __call__(  # type: ignore[override]  # the second argument is Flax's
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
            batch, and updates them; a traced bool compiles both into one program. None
            takes what the constructor, `train()` or `eval()` said.
          mask: bool mask or weights that broadcast to `x`.
          scale: gamma, where the module has none of its own.
          bias: beta, likewise.

        Returns:
          Array of the shape of `x`.

        Raises:
          TypeError: if `x` is neither floating-point nor complex.
          ValueError: if shapes disagree, or nothing says `use_running_average`.
        """
        label = self._label
        evaluating = first_from(
            use_running_average,
            self.use_running_average,
            error_msg=f"{label}: No `use_running_average` argument was provided; pass "
            "it to the constructor or to the call, or use train(), eval() or nnx.view.",
        )
        training = shared.opposite(evaluating)
        x = shared.check_input(label, x, self.dtype)
        features = shared.axes_of(label, x, self.axis, "axis")
        gamma, beta = self._parameters(label, x, features, scale, bias)
        stats = NormStats(self.mean[...], self.var[...], jnp.ones(()))
        names = NormStats._fields[: 3 if shared.has_weight(self) else 2]
        stats = stats._replace(**{name: getattr(self, name)[...] for name in names})
        shared.check_stats(label, x, features, stats)
        dtype = self._output_dtype(x, stats.mean, stats.var, gamma, beta)
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
        )
        if training is not False:
            for name in names:
                # Variables outlive the trace of a gradient, which must not reach them.
                value = jax.lax.stop_gradient(getattr(stats, name))
                getattr(self, name).set_value(value)
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set what `nnx.view` sets.

        Args:
          use_running_average: whether to normalize by the running statistics.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


@nnx.dataclass(eq=False, kw_only=True)
class LayerNorm(_AffineNorm):
    r"""Normalize over the features of every example.

    .. math::
      y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

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
        return shared.layer_plan(label, x, self.reduction_axes, self.feature_axes)


@nnx.dataclass(eq=False, kw_only=True)
class RMSNorm(_Norm):
    r"""Divide every example by its root mean square.

    .. math::
      y = \gamma \frac{x}{\sqrt{\frac1n \sum_i |x_i|^2 + \epsilon}}

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
        return shared.layer_plan(
            label, x, self.reduction_axes, self.feature_axes, centered=False
        )


@nnx.dataclass(eq=False)
class GroupNorm(_AffineNorm):
    r"""Normalize groups of neighbouring channels of every example.

    .. math::
      y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

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
        channels = math.prod(self._shape)
        self.num_groups = shared.count_groups(
            self._label, channels, self.num_groups, self.group_size
        )
        self.group_size = channels // self.num_groups
        super().__post_init__(*init)

    def _plan(self, label: str, x: jax.Array) -> Plan:
        return shared.group_plan(
            label, x, self.num_groups, None, self.reduction_axes, self.feature_axis
        )


@nnx.dataclass(eq=False, kw_only=True)
class InstanceNorm(_AffineNorm):
    r"""Normalize every channel of every example over space.

    .. math::
      y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

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
        return shared.instance_plan(label, x, self.feature_axes)


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
    r"""Divide the kernels of a layer by their largest singular values.

    .. math::
      w = v / \sigma(v)

    The layer keeps its kernels. For every kernel of two axes or more, `batch_stats`
    holds the `nnx.BatchStat` variables `u`, an estimate of a singular vector, and
    `sigma`.

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

    def __call__(self, x: Any, update_stats: bool | jax.Array | None = None) -> Any:
        """Call the layer with normalized kernels.

        Args:
          x: for the layer.
          update_stats: whether to keep the new `u` and `sigma`; None takes what the
            constructor, `train()` or `eval()` said.

        Returns:
          What the layer returns.
        """
        given = not self.use_running_average if update_stats is None else update_stats
        update = shared.flag(given)

        def change(path: Path, kernel: nnx.Variable[Any]) -> jax.Array | None:
            if not self._has_spectrum(kernel):
                return None
            u, sigma = (self._stat((*path, name)) for name in ("u", "sigma"))
            changed, stats = shared.spectrally_normalized(
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
        return shared.has_spectrum(self, kernel, "Layer instance parameter")

    def _stat(self, path: Path) -> nnx.Variable[Any]:
        return _found(self, self.batch_stats, path)


@nnx.dataclass(eq=False)
class WeightNorm(nnx.Module):
    r"""Give the kernels of a layer lengths that are learned apart from directions.

    .. math::
      w = g \frac{v}{\sqrt{\lVert v \rVert_2^2 + \epsilon}}

    The layer keeps its kernels; `scales` holds the lengths, one `nnx.Param` a kernel.
    Flax's are plain arrays, which an optimizer of `nnx.Param` never changes;
    checkpoints of `nnx.to_pure_dict(nnx.state(...))` load in both directions.

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
        scales = {}
        for path, kernel in nnx.to_flat_state(
            nnx.state(self.layer_instance, nnx.Param)
        ):
            if self.variable_filter(path, kernel):
                shape = shared.weight_scale_shape(self, type(self).__name__, kernel)
                value = self.scale_init(rngs.params(), shape, self.param_dtype)
                scales[path] = nnx.Param(value)
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
            return shared.length_normalized(
                self, type(self).__name__, kernel[...], scale
            )

        with _changed(self.layer_instance, change):
            return self.layer_instance(x, *args, **kwargs)


def _found(module: nnx.Module, variables: Mapping[Path, Any], path: Path) -> Any:
    """Return the variable that belongs to a parameter of the layer."""
    if path not in variables:
        raise ValueError(
            f"{type(module).__name__}: the parameters of the layer must stay those it "
            f"had when it was wrapped. Received a new one at {path}; wrap the layer "
            "again."
        )
    return variables[path]
