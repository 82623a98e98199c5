"""Flax nnx's BatchNorm."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from
from jax.typing import ArrayLike

from jaxnorm.axes import Axes
from jaxnorm.flax_shared import batch, inputs
from jaxnorm.flax_shared.batch import MOMENTUM
from jaxnorm.nnx.base import AffineNorm
from jaxnorm.options import Flag
from jaxnorm.stats import NormStats


@nnx.dataclass(eq=False, kw_only=True)
class BatchNorm(AffineNorm):
    """Normalize every feature by its statistics over the batch.

        y = scale * (x - mean) / sqrt(var + epsilon) + bias

    The running mean and variance are the `nnx.BatchStat` variables `mean` and `var`, at
    least float32. (In a model that was cast to half precision the first training step
    makes them float32 again. Where types must not change, as in `nnx.scan`, leave them
    out of the cast: `nnx.split(model, nnx.BatchStat, ...)` tells them apart.)

    Arguments that are not listed are those of `flax.nnx.BatchNorm`.

    Args:
      num_features: size of the feature axis, or sizes of several.
      axis: the feature axis, or axes; all others are reduced.
      momentum: the weight of the old running value; None as in `decay`.
      debias: start the average at the first batch, instead of at mean 0 and variance 1.
        The `nnx.BatchStat` `weight` says how much evidence there is. Averages of
        Flax's module have none: once they are loaded, set it with
        `norm.weight.set_value(jnp.ones(()))`, or the next batch replaces them.
      ddof: 1 keeps the unbiased running variance, as PyTorch does.
      decay: the functional API's word for `momentum`, which it replaces if given;
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
        stats = batch.first_stats(self, self._feature_shape, dtype)
        self.mean = nnx.BatchStat(stats.mean)
        self.var = nnx.BatchStat(stats.var)
        if batch.has_weight(self):
            self.weight = nnx.BatchStat(stats.weight)
        super().__post_init__(*init)

    def __call__(  # type: ignore[override]  # the second argument is Flax's
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
        label = self._name_in_errors
        evaluating = first_from(
            use_running_average,
            self.use_running_average,
            error_msg=f"{label}: No `use_running_average` argument was provided; pass "
            "it to the constructor or to the call, or use train(), eval() or nnx.view.",
        )
        training = inputs.training_of(label, evaluating)
        x = inputs.check_input(label, x, self.dtype)
        features = inputs.axes_of(label, x, self.axis, "axis")
        gamma, beta = self._parameters(label, x, features, scale, bias)
        stats = NormStats(self.mean[...], self.var[...], jnp.ones(()))
        names = batch.stored_names(self)
        stats = stats._replace(**{name: getattr(self, name)[...] for name in names})
        batch.check_stored_stats(label, x, features, stats)
        dtype = self._output_dtype(x, (gamma, beta), (stats.mean, stats.var))
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
