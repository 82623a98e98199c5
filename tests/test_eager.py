"""Outside of jit: a second call compiles nothing."""

import gc
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm as jn
import jaxnorm.linen
import jaxnorm.nnx

X = jax.random.normal(jax.random.key(0), (4, 8, 8, 6))
STATS = jn.init_stats(6)
SPECTRAL = jn.init_spectral_stats(jax.random.key(0), 6)
LINEN = jaxnorm.linen.BatchNorm(use_running_average=False)
VARIABLES = LINEN.init(jax.random.key(0), X)
NNX = jaxnorm.nnx.BatchNorm(6, rngs=nnx.Rngs(0))


def train(x):
    return jn.batch_norm(x, STATS, training=True)[0]


def evaluate(x):
    return jn.batch_norm(x, STATS, training=False)[0]


def gradient(f):
    return jax.grad(lambda x: jnp.sum(f(x) ** 3))


CALLS = {
    "batch": train,
    "flag in an array": lambda x: jn.batch_norm(x, STATS, training=jnp.array(True)),
    "weighted": lambda x: jn.batch_norm(x, STATS, training=True, weights=x > 0),
    "evaluation": evaluate,
    "normalize": lambda x: jn.normalize(x, 0.0, 1.0),
    "layer": jn.layer_norm,
    "rms": jn.rms_norm,
    "group": lambda x: jn.group_norm(x, num_groups=2),
    "instance": jn.instance_norm,
    "moments": lambda x: jn.compute_moments(x, (0, 1, 2)),
    "update": lambda x: jn.update_stats(STATS, jn.Moments(9.0, x[0, 0, 0], x[0, 0, 1])),
    "merge": lambda x: jn.merge_moments(*2 * [jn.Moments(9.0, x[0, 0, 0], x[0, 0, 1])]),
    "spectral": lambda x: jn.spectral_norm(x, SPECTRAL, training=True),
    "weight standardization": jn.weight_standardization,
    "gradient of batch": gradient(train),
    "gradient of evaluation": gradient(evaluate),
    "gradient of layer": gradient(jn.layer_norm),
    "tangent of batch": lambda x: jax.jvp(train, (x,), (x,)),
    "vmap of layer": jax.vmap(jn.layer_norm),
    "linen": lambda x: LINEN.apply(VARIABLES, x, mutable=["batch_stats"]),
    "nnx": NNX,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(name, caplog):
    for _ in range(2):  # twice: the first one makes arrays of other types
        CALLS[name](X)
    assert not compiled(caplog, lambda: CALLS[name](X))


@pytest.mark.parametrize(
    ("name", "size", "most"),
    [("update", 61, 2), ("merge", 67, 2), ("batch", 71, 4), ("spectral", 73, 1)],
)
def test_a_first_call_compiles_few_programs(name, size, most, caplog):
    """But more than none, or the test above would find nothing in any case."""
    x = jax.random.normal(jax.random.key(0), (5, size))  # a size of this call alone
    stats, moments = jn.init_stats(size), jn.compute_moments(x, 0)
    vector = jn.init_spectral_stats(jax.random.key(0), size)
    calls = {
        "update": lambda: jn.update_stats(stats, moments),
        "merge": lambda: jn.merge_moments(moments, moments),
        "batch": lambda: jn.batch_norm(x, stats, training=True),
        "spectral": lambda: jn.spectral_norm(x, vector, training=True),
    }
    assert 1 <= len(compiled(caplog, calls[name])) <= most


def compiled(caplog, call):
    """Return what JAX says of the programs that it compiles."""
    with jax.log_compiles():
        call()
    texts = [record.getMessage() for record in caplog.records]
    return [text for text in texts if "Compiling" in text]


@pytest.mark.parametrize("name", ["batch", "evaluation", "layer", "rms", "group"])
def test_differentiation_keeps_nothing_that_was_traced(name):
    """Functions that JAX holds in its caches refer to no tracer."""
    rms = partial(jn.rms_norm, scale=jnp.ones(6))
    loss = gradient(rms if name == "rms" else CALLS[name])
    if name == "batch":
        loss = gradient(lambda x: jn.batch_norm(x, STATS, training=True, add=x)[0])
    kept = live_tracers()
    for size in (3, 5, 7):  # each is traced anew; a program need not be compiled
        jax.jit(loss).lower(X[:, :size])
    assert live_tracers() == kept


def live_tracers():
    gc.collect()
    return sum(isinstance(thing, jax.core.Tracer) for thing in gc.get_objects())
