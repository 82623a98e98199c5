"""Train a Flax nnx network on images of digits; save and resume it.

The norms come from jaxnorm.nnx, and that import is all that differs from plain Flax:
running statistics are `nnx.BatchStat` variables of the model. The last batch of an
epoch is filled up with rows of weight 0, which the mask keeps out of the statistics.

    python -m examples.digits_nnx
    python -m examples.digits_nnx --resume     # after an interruption
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from flax import nnx

import jaxnorm.nnx
from examples.common import digits
from examples.common.data import CLASSES, Batch, Dataset
from examples.common.digits import Learner, Metrics, Tree


@dataclass(frozen=True)
class Config(digits.Config):
    """Train a Flax nnx network on images of digits; save and resume it."""

    out: Path = Path("runs/digits_nnx")
    """Where checkpoints, the figure and results.json go."""


class Block(nnx.Module):
    """A convolution, a BatchNorm and a ReLU."""

    def __init__(self, inputs: int, features: int, stride: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs, features, (3, 3), strides=stride, use_bias=False, rngs=rngs
        )
        self.norm = jaxnorm.nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return feature maps."""
        return nnx.relu(self.norm(self.conv(x), mask=mask))


class Network(nnx.Module):
    """Three blocks and a linear map."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.first = Block(1, width, 1, rngs)
        self.second = Block(width, 2 * width, 2, rngs)
        self.third = Block(2 * width, 4 * width, 2, rngs)
        self.head = nnx.Linear(4 * width, CLASSES, rngs=rngs)

    def __call__(
        self, images: jax.Array, weights: jax.Array | None = None
    ) -> jax.Array:
        """Return logits of shape (rows, classes)."""
        mask = None if weights is None else weights[:, None, None, None]
        x = images
        for block in (self.first, self.second, self.third):
            x = block(x, mask)
        return self.head(x.mean((1, 2)))


State = tuple[Network, nnx.Optimizer]


@nnx.jit
def update(network: Network, optimizer: nnx.Optimizer, batch: Batch) -> Metrics:
    """Take one step; return the metrics of the batch before it."""

    def loss(network: Network) -> tuple[jax.Array, Metrics]:
        metrics = digits.measure(network(batch.images, batch.weights), batch)
        return metrics.loss / metrics.count, metrics

    grads, metrics = nnx.grad(loss, has_aux=True)(network)
    optimizer.update(network, grads)
    return metrics


@nnx.jit
def evaluate(network: Network, batch: Batch) -> Metrics:
    """Return the metrics of a batch."""
    return digits.measure(network(batch.images), batch)


def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
    """Change the network and the optimizer in place."""
    network, optimizer = state
    network.train()
    return state, update(network, optimizer, batch)


def eval_step(state: State, batch: Batch) -> Metrics:
    """Normalize by the running statistics."""
    network, _ = state
    network.eval()
    return evaluate(network, batch)


def make(config: Config, train_data: Dataset) -> Learner:
    """Return a fresh network, and how it is trained and saved."""
    network = Network(config.width, nnx.Rngs(config.seed))
    transformation = digits.make_optimizer(config, train_data)
    optimizer = nnx.Optimizer(network, transformation, wrt=nnx.Param)

    def to_tree(state: State) -> Tree:
        network, optimizer = (nnx.to_pure_dict(nnx.state(part)) for part in state)
        return {"network": network, "optimizer": optimizer}

    def from_tree(state: State, tree: Tree) -> Any:
        for part, name in zip(state, ("network", "optimizer"), strict=True):
            nnx.update(part, tree[name])
        return state

    return Learner((network, optimizer), train_step, eval_step, to_tree, from_tree)


if __name__ == "__main__":
    digits.run(tyro.cli(Config, prog="python -m examples.digits_nnx"), make)
