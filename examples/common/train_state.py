"""The state of a training loop."""

from typing import NamedTuple

import optax

from examples.common.convnet import Params, Stats


class TrainState(NamedTuple):
    """What training changes: three pytrees, passed in and handed back."""

    params: Params
    stats: Stats
    opt_state: optax.OptState
