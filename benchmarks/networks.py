"""Two networks with the norm left open, so that libraries differ in nothing else.

Blocks of one kind are a list that is run by a Python loop, or are stacked along a
leading axis of their parameters and run by `lax.scan`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from benchmarks.providers import Function
from examples.common.data import load_digits

Params = dict[str, Any]
Block = Callable[[jax.Array, Any, Any], tuple[jax.Array, Any]]
# From the number of features to the function of a provider.
Norms = Callable[[int], Function]


class Network(NamedTuple):
    """A network as three functions.

    Attributes:
      init: key -> (params, stats).
      loss: (params, stats, batch) -> (loss, new stats).
      batch: key -> a batch to measure with.
    """

    init: Callable[[jax.Array], tuple[Params, Any]]
    loss: Callable[..., tuple[jax.Array, Any]]
    batch: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def run_blocks(
    block: Block, x: jax.Array, params: Any, stats: Any, *, scan: bool
) -> tuple[jax.Array, Any]:
    """Run blocks, stacked or a list, one after the other."""
    if scan:
        return lax.scan(lambda x, layer: block(x, *layer), x, (params, stats))
    outputs = []
    for layer in zip(params, stats, strict=True):
        x, output = block(x, *layer)
        outputs.append(output)
    return x, outputs


def unstack(tree: Any, count: int) -> list[Any]:
    """Return stacked blocks as a list."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


# Residual network.

STAGES = ((16, 1), (32, 2), (64, 2))  # features and stride


def resnet(
    norms: Norms, dtype: Any, *, blocks: int, batch_size: int, scan: bool
) -> Network:
    """Return a residual network for digits: three stages of `blocks` blocks."""
    return Network(
        init=partial(_init_resnet, blocks, scan),
        loss=partial(_resnet_loss, norms, dtype, scan),
        batch=partial(_digits, batch_size),
    )


def _digits(batch_size: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    train, _ = load_digits()
    rows = jax.random.choice(key, len(train.labels), (batch_size,))
    return jnp.asarray(train.images)[rows], jnp.asarray(train.labels)[rows]


def _init_resnet(blocks: int, scan: bool, key: jax.Array) -> tuple[Params, Any]:
    params, stats, channels = [], [], 1

    def repeat(tree):
        return (
            jax.tree.map(lambda leaf: jnp.stack([leaf] * blocks), tree)
            if scan
            else [tree] * blocks
        )

    for features, _ in STAGES:
        key, *keys = jax.random.split(key, 3)
        entry = _init_layer(keys[0], channels, features)
        layers = [_init_layer(k, features, features) for k in jax.random.split(keys[1])]
        params.append({"entry": entry, "blocks": repeat(layers)})
        fresh = (jnp.zeros(features), jnp.ones(features))
        stats.append({"entry": fresh, "blocks": repeat([fresh, fresh])})
        channels = features
    head = jax.random.normal(key, (channels, 10)) / math.sqrt(channels)
    return {"stages": params, "head": head}, stats


def _init_layer(key: jax.Array, channels: int, features: int) -> Params:
    kernel = jax.nn.initializers.he_normal()(key, (3, 3, channels, features))
    return {
        "kernel": kernel,
        "scale": jnp.ones(features),
        "bias": jnp.zeros(features),
    }


def _convolve_and_normalize(norms, x, layer, stats, stride=1):
    x = lax.conv_general_dilated(
        x,
        layer["kernel"].astype(x.dtype),
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y, stats = norms(x.shape[-1])(x, layer["scale"], layer["bias"], *stats)
    # Haiku's have the dtype of x, which the next step would not take.
    return y, tuple(value.astype(jnp.float32) for value in stats)


def _resnet_loss(norms, dtype, scan, params, stats, batch):
    def block(x, layers, stats):
        y, first = _convolve_and_normalize(norms, x, layers[0], stats[0])
        y, second = _convolve_and_normalize(norms, jax.nn.relu(y), layers[1], stats[1])
        return jax.nn.relu(x + y), [first, second]

    images, labels = batch
    x, new_stats = images.astype(dtype), []
    for stage, old, (_, stride) in zip(params["stages"], stats, STAGES, strict=True):
        x, entry = _convolve_and_normalize(
            norms, x, stage["entry"], old["entry"], stride
        )
        x, rest = run_blocks(
            block, jax.nn.relu(x), stage["blocks"], old["blocks"], scan=scan
        )
        new_stats.append({"entry": entry, "blocks": rest})
    logits = jnp.mean(x, (1, 2), dtype=jnp.float32) @ params["head"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses), new_stats


# Transformer.

HEADS = 8


def transformer(
    norms: Norms,
    dtype: Any,
    *,
    layers: int,
    width: int,
    length: int,
    batch_size: int,
    scan: bool,
) -> Network:
    """Return a stack of pre-norm transformer blocks that regresses its input."""
    shape = (batch_size, length, width)
    return Network(
        init=partial(_init_transformer, layers, width, scan),
        loss=partial(_transformer_loss, norms, dtype, scan),
        batch=lambda key: tuple(jax.random.normal(key, (2, *shape))),
    )


def _init_transformer(
    layers: int, width: int, scan: bool, key: jax.Array
) -> tuple[Params, Any]:
    def dense(key, rows, columns):
        return jax.random.normal(key, (layers, rows, columns)) / math.sqrt(rows)

    keys = jax.random.split(key, 4)
    params = {
        "queries_keys_values": dense(keys[0], width, 3 * width),
        "attended": dense(keys[1], width, width),
        "up": dense(keys[2], width, 4 * width),
        "down": dense(keys[3], 4 * width, width),
        "scale": jnp.ones((layers, 2, width)),
        "bias": jnp.zeros((layers, 2, width)),
    }
    return params if scan else unstack(params, layers), ()


def _transformer_loss(norms, dtype, scan, params, stats, batch):
    def block(x, layer, _):
        def normalize(x, place):
            norm = norms(x.shape[-1])
            y, _ = norm(x, layer["scale"][place], layer["bias"][place], None, None)
            return y

        def dense(x, name):
            return x @ layer[name].astype(x.dtype)

        heads = dense(normalize(x, 0), "queries_keys_values")
        queries, keys, values = jnp.split(
            heads.reshape(*x.shape[:2], 3 * HEADS, -1), 3, axis=2
        )
        attended = jax.nn.dot_product_attention(queries, keys, values)
        x = x + dense(attended.reshape(x.shape), "attended")
        hidden = jax.nn.gelu(dense(normalize(x, 1), "up"))
        return x + dense(hidden, "down"), ()

    x, target = batch
    none = () if scan else [()] * len(params)
    y, _ = run_blocks(block, x.astype(dtype), params, none, scan=scan)
    return jnp.mean(jnp.square(y.astype(jnp.float32) - target)), stats
