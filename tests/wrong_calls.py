"""A call with wrong arguments: what it is made of, and what is checked of it."""

import jax.numpy as jnp
import pytest

import jaxnorm as jn

X = jnp.ones((4, 6))
STATS = jn.init_stats(6)


def batch_norm(x=X, stats=STATS, *args, training=True, **kwargs):
    return jn.batch_norm(x, stats, *args, training=training, **kwargs)


def check_error(call, kind, text):
    """Check that the call raises an error of that kind, with just these words."""
    with pytest.raises(kind) as error:
        call()
    assert error.value.args[0] == text
