"""Train a Flax linen network on images of digits; save and resume it.

The norms come from jaxnorm.linen, and that import is all that differs from plain Flax:
`batch_stats` travels in the TrainState, next to the parameters. The last batch of an
epoch is filled up with rows of weight 0, which the mask keeps out of the statistics.

    python -m examples.digits_linen
    python -m examples.digits_linen --resume     # after an interruption
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import tyro
from flax import linen as nn
from flax import serialization
from flax.training import train_state

import jaxnorm.linen
from examples.common import digits
from examples.common.data import CLASSES, Batch, Dataset
from examples.common.digits import Learner, Metrics


@dataclass(frozen=True)
class Config(digits.Config):
    """Train a Flax linen network on images of digits; save and resume it."""

    out: Path = Path("runs/digits_linen")
    """Where checkpoints, the figure and results.json go."""


class Network(nn.Module):
    """Three convolutions, each with a BatchNorm and a ReLU, and a linear map."""

    width: int

    @nn.compact
    def __call__(
        self, images: jax.Array, *, training: bool, weights: jax.Array | None = None
    ) -> jax.Array:
        """Return logits of shape (rows, classes)."""
        mask = None if weights is None else weights[:, None, None, None]
        x = images
        for level in range(3):
            features, stride = self.width * 2**level, 1 + (level > 0)
            x = nn.Conv(features, (3, 3), strides=stride, use_bias=False)(x)
            norm = jaxnorm.linen.BatchNorm(momentum=0.9)
            x = nn.relu(norm(x, use_running_average=not training, mask=mask))
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class TrainState(train_state.TrainState):
    """Parameters and the optimizer's state, with the running statistics."""

    batch_stats: Any


@jax.jit
def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Return the next state, and the metrics of the batch before the step."""

    def loss(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch.images,
            training=True,
            weights=batch.weights,
            mutable=["batch_stats"],
        )
        metrics = digits.measure(logits, batch)
        return metrics.loss / metrics.count, (updates["batch_stats"], metrics)

    grads, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), metrics


@jax.jit
def eval_step(state: TrainState, batch: Batch) -> Metrics:
    """Return the metrics of a batch that is normalized by the running statistics."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, batch.images, training=False)
    return digits.measure(logits, batch)


def make(config: Config, train_data: Dataset) -> Learner:
    """Return a fresh network, and how it is trained and saved."""
    network = Network(config.width)
    key, images = jax.random.key(config.seed), train_data.images[:1]
    variables = jax.jit(partial(network.init, training=False))(key, images)
    state = TrainState.create(
        apply_fn=network.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=digits.make_optimizer(config, train_data),
    )
    return Learner(
        state,
        train_step,
        eval_step,
        to_tree=serialization.to_state_dict,
        from_tree=serialization.from_state_dict,
    )


if __name__ == "__main__":
    digits.run(tyro.cli(Config, prog="python -m examples.digits_linen"), make)
