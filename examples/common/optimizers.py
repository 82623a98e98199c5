"""Optimizers and learning-rate schedules by name, all of them Optax's own."""

from typing import Any, Literal

import jax
import optax

OptimizerName = Literal["sgd", "adam", "adamw", "lamb", "lion", "rmsprop"]
ScheduleName = Literal["constant", "cosine", "warmup-cosine", "step"]


def make_optimizer(
    name: OptimizerName,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Return the named optimizer; sgd has Nesterov momentum 0.9.

    Weight decay, where the optimizer has it (adamw, lamb, lion), is for kernels only: a
    norm undoes the shrinking of the kernel before it, not of its own scale and bias.
    """
    decays = {"weight_decay": weight_decay, "mask": is_kernel}
    match name:
        case "sgd":
            return optax.sgd(learning_rate, momentum=0.9, nesterov=True)
        case "adam":
            return optax.adam(learning_rate)
        case "adamw":
            return optax.adamw(learning_rate, **decays)
        case "lamb":
            return optax.lamb(learning_rate, **decays)
        case "lion":
            return optax.lion(learning_rate, **decays)
        case "rmsprop":
            return optax.rmsprop(learning_rate)


def is_kernel(params: Any) -> Any:
    """Return a tree like `params`: True for kernels, False for scales and biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_schedule(name: ScheduleName, peak: float, steps: int) -> optax.Schedule:
    """Return the named schedule of the learning rate over `steps` steps.

    Args:
      name: "constant" stays at `peak`; "cosine" falls from it to zero; "warmup-cosine"
        first rises to it during a tenth of the steps; "step" divides it by ten after
        one half and after three quarters of the steps.
      peak: the highest learning rate.
      steps: number of steps in the whole training.
    """
    match name:
        case "constant":
            return optax.constant_schedule(peak)
        case "cosine":
            return optax.cosine_decay_schedule(peak, steps)
        case "warmup-cosine":
            return optax.warmup_cosine_decay_schedule(
                init_value=0.0,
                peak_value=peak,
                warmup_steps=max(1, steps // 10),
                decay_steps=max(2, steps),
            )
        case "step":
            return optax.piecewise_constant_schedule(
                peak, {steps // 2: 0.1, steps * 3 // 4: 0.1}
            )
