"""Flax linen's BatchNorm."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxnorm.axes import Axes, AxisGroups, AxisName
from jaxnorm.flax_shared import batch, inputs
from jaxnorm.flax_shared.batch import MOMENTUM
from jaxnorm.linen.base import STATS, Norm, label_of
from jaxnorm.options import Flag


class BatchNorm(Norm):
    """Normalize every feature by its statistics over the batch.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    The running mean and variance are `mean` and `var` in the collection `batch_stats`,
    at least float32. Training needs `mutable=["batch_stats"]`; nothing is updated while
    the module is initialized.

    Arguments that are not listed are those of `flax.linen.BatchNorm`.

    Attributes:
      axis: the feature axis, or axes; all others are reduced.
      momentum: the weight of the old running value; None as in `decay`.
      debias: start the average at the first batch, instead of at mean 0 and variance 1.
        `weight` in `batch_stats` says how much evidence there is. A checkpoint of
        Flax's module has none; its averages continue with a weight of 1. (To restore
        it, make the target with a module without `debias`.)
      ddof: 1 keeps the unbiased running variance, as PyTorch does.
      decay: the functional API's word for `momentum`, which it replaces if given;
        None is the equal-weight average of all batches, and needs `weight` as well.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxnorm.linen
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> norm = jaxnorm.linen.BatchNorm(use_running_average=False, momentum=0.9)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
      >>> print(y.round(3), updates["batch_stats"]["mean"])
      [[-1. -1.]
       [ 1.  1.]] [0.2 2. ]

    Reference:
      Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167.
    """

    use_running_average: Flag | None = None
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
        use_running_average: Flag | None = None,
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
        training = inputs.training_of(label, evaluating)
        x = inputs.check_input(label, x, self.dtype)
        if self.is_initializing() and x.size == 0:  # a dummy without rows has a shape
            training = False
        features = inputs.axes_of(label, x, self.axis, "axis")
        self._check_collection(training)
        stats = batch.first_stats(self, inputs.sizes_of(x, features), x.dtype)
        if self.has_variable(STATS, "mean"):
            # Averages that were trained without a weight go on with a full one.
            stats = stats._replace(weight=jnp.ones_like(stats.weight))
        stored = {
            name: self.variable(STATS, name, lambda leaf: leaf, getattr(stats, name))
            for name in batch.stored_names(self)
            if self.is_mutable_collection(STATS) or self.has_variable(STATS, name)
        }
        stats = stats._replace(**{name: leaf.value for name, leaf in stored.items()})
        batch.check_stored_stats(label, x, features, stats)
        gamma, beta, dtype = self._parameters(x, features, scale, bias)
        y, stats = batch.normalize_batch(
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
            for name, leaf in stored.items():
                leaf.value = getattr(stats, name)
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
