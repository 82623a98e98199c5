"""What the nnx modules have in common."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, initializers
from flax.typing import Dtype, Initializer, PromoteDtypeFn
from jax.typing import ArrayLike

from jaxnorm import options
from jaxnorm.axes import AxisGroups, AxisName
from jaxnorm.flax_shared import inputs, per_example
from jaxnorm.flax_shared.per_example import Plan

Metadata = Mapping[str, Any]
NO_METADATA: Metadata = MappingProxyType({})
ZEROS = initializers.zeros_init()
ONES = initializers.ones_init()


@nnx.dataclass(eq=False)
class Norm(nnx.Module):
    """Holds a scale, and normalizes by the moments of the input."""

    # Those of this library. A user's subclass may have an attribute `bias`, and a use
    # for it, of its own.
    _parameter_names: ClassVar[tuple[str, ...]] = ("scale",)

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
        """Make the variables."""
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
        label = self._name_in_errors
        x = inputs.check_input(label, x, self.dtype)
        plan = self._plan(label, x)
        gamma, beta = self._parameters(label, x, plan.features, scale, bias)
        has_bias = "bias" in self._parameter_names or beta is not None
        dtype = self._output_dtype(x, (gamma, beta) if has_bias else (gamma,))
        return per_example.normalize(
            self, label, x, plan, gamma, beta, mask=mask, dtype=dtype
        )

    def _plan(self, label: str, x: jax.Array) -> Plan:
        """Return what is normalized together, which each norm of `per_example` says."""
        raise NotImplementedError

    @property
    def _name_in_errors(self) -> str:
        return f"{type(self).__name__}(num_features={self.num_features})"

    @property
    def _feature_shape(self) -> tuple[int, ...]:
        caller = self._name_in_errors
        return options.check_num_features(self.num_features, caller=caller)

    def _declare(
        self, use: bool, init: Initializer, rngs: nnx.Rngs, metadata: Metadata
    ) -> nnx.Param[jax.Array] | None:
        shape = self._feature_shape
        if not use:
            return nnx.data(None)
        return nnx.Param(init(rngs.params(), shape, self.param_dtype), **metadata)

    def _parameters(
        self,
        label: str,
        x: jax.Array,
        features: tuple[int, ...],
        scale: ArrayLike | None,
        bias: ArrayLike | None,
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Return scale and bias of the rank of `x`."""
        inputs.check_num_features(label, x, features, math.prod(self._feature_shape))

        def find(name: str, given: ArrayLike | None) -> jax.Array | None:
            holds = name in self._parameter_names
            variable = getattr(self, name) if holds else None
            own = None if variable is None else variable[...]
            return inputs.parameter(label, name, x, features, own, given)

        return find("scale", scale), find("bias", bias)

    def _output_dtype(
        self,
        x: jax.Array,
        parameters: tuple[jax.Array | None, ...],
        statistics: tuple[jax.Array, ...] = (),
    ) -> Any:
        """Return the dtype of the output: `dtype`, or what `promote_dtype` makes it.

        It gets the arguments that Flax passes. The dtypes it gives to statistics are
        ignored.
        """
        if self.dtype is not None:
            return self.dtype
        if self.promote_dtype is dtypes.promote_dtype:  # its rule, without tracing it
            return dtypes.canonicalize_dtype(x, *statistics, *parameters)

        def promote(*arrays: jax.Array | None) -> Any:
            return self.promote_dtype(arrays, dtype=None)

        promoted = jax.eval_shape(promote, x, *statistics, *parameters)
        kept = (promoted[0], *promoted[1 + len(statistics) :])
        return jnp.result_type(*(a.dtype for a in kept if a is not None))


@nnx.dataclass(eq=False, kw_only=True)
class AffineNorm(Norm):
    """Holds a bias as well."""

    _parameter_names: ClassVar[tuple[str, ...]] = ("scale", "bias")

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
        """Make the variables."""
        super().__post_init__(scale_init, rngs, scale_metadata)
        self.bias = self._declare(self.use_bias, bias_init, rngs, bias_metadata)
