"""A small convolutional network whose parameters and statistics are plain pytrees.

`init` makes them and `apply` uses them; both are pure functions. Every hidden layer is
a 3x3 convolution, a norm and a ReLU. The third and the fifth layer halve the height and
the width of the image and double the features. A mean over the pixels and a linear map
give the logits.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from examples.common import norms
from examples.common.norms import NormName

Params = dict[str, Any]
Stats = list[Any]


class Network(NamedTuple):
    """What kind of network: the choices that are fixed before training.

    Attributes:
      norm: the norm after every convolution.
      width: features of the first two layers.
      depth: number of convolutions.
      classes: number of logits.
      decay: weight of the old value in the running statistics.
    """

    norm: NormName
    width: int
    depth: int
    classes: int = 10
    decay: float = 0.9


class Output(NamedTuple):
    """What `apply` returns; under jit, what is not used is not computed.

    Attributes:
      logits: shape (rows, classes).
      stats: the running statistics, updated where `training`.
      layer_inputs: for each hidden layer the pre-activations, which its ReLU receives.
    """

    logits: jax.Array
    stats: Stats
    layer_inputs: list[jax.Array]


def features_and_strides(network: Network) -> list[tuple[int, int]]:
    """Return (features, stride) of every convolution."""
    levels = [min(layer // 2, 2) for layer in range(network.depth)]
    before = [0, *levels[:-1]]
    return [
        (network.width * 2**level, 1 + level - last)
        for level, last in zip(levels, before, strict=True)
    ]


def init(key: jax.Array, network: Network, channels: int = 1) -> tuple[Params, Stats]:
    """Return fresh (params, stats) for images with `channels` channels."""
    layers, stats = [], []
    for layer_key, (features, _) in zip(
        jax.random.split(jax.random.fold_in(key, 0), network.depth),
        features_and_strides(network),
        strict=True,
    ):
        layers.append(_init_layer(layer_key, network.norm, channels, features))
        stats.append(norms.init_stats(network.norm, features))
        channels = features
    head = jax.nn.initializers.lecun_normal()(
        jax.random.fold_in(key, 1), (channels, network.classes)
    )
    bias = jnp.zeros(network.classes)
    return {"layers": layers, "head": {"kernel": head, "bias": bias}}, stats


def _init_layer(key: jax.Array, norm: NormName, channels: int, features: int) -> Params:
    kernel = jax.nn.initializers.he_normal()(key, (3, 3, channels, features))
    layer = {"kernel": kernel, "bias": jnp.zeros(features)}
    # Without a norm a scale would only repeat what the kernel can do.
    return layer if norm == "none" else {**layer, "scale": jnp.ones(features)}


def apply(
    network: Network,
    params: Params,
    stats: Stats,
    images: ArrayLike,
    *,
    training: bool,
    weights: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Output:
    """Run the network on images of shape (rows, height, width, channels).

    Args:
      network: the choices that `params` and `stats` were made with.
      params: what is learned.
      stats: the running statistics.
      images: a batch, or a device's share of it.
      training: normalize by this batch and update `stats`, or normalize by `stats`.
      weights: shape (rows,); rows of weight 0 are padding.
      axis_name: the device axis over which the batch is spread, if it is.
    """
    x, new_stats, pre_activations = jnp.asarray(images), [], []
    for layer, layer_stats, (_, stride) in zip(
        params["layers"], stats, features_and_strides(network), strict=True
    ):
        x, layer_stats = norms.apply_norm(
            network.norm,
            convolve(x, layer["kernel"], stride),
            layer_stats,
            layer.get("scale"),
            layer["bias"],
            training=training,
            decay=network.decay,
            weights=weights,
            axis_name=axis_name,
        )
        new_stats.append(layer_stats)
        pre_activations.append(x)
        x = jax.nn.relu(x)
    x = jnp.mean(x, axis=(1, 2))
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    return Output(logits, new_stats, pre_activations)


@partial(jax.jit, static_argnums=0)
def layer_inputs(
    network: Network, params: Params, stats: Stats, images: ArrayLike
) -> list[jax.Array]:
    """Return the pre-activations of every layer, normalized as in training."""
    return apply(network, params, stats, images, training=True).layer_inputs


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve (rows, height, width, channels) with a 3x3 kernel, zero-padded."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def count_parameters(params: Params) -> int:
    """Return how many numbers are learned."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
