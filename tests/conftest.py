"""What every test needs before JAX starts: eight simulated devices, a compile cache."""

import gc
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

gc.set_threshold(100_000, 50, 50)  # looking through what tracing makes takes 8%


@pytest.fixture(params=["cpu", "gpu"])
def platform(request, monkeypatch):
    """Run a test with what is computed on a CPU, then with what is on a GPU.

    Where a test asks for it, also with what is computed on a TPU, and where arrays are
    spread over many devices, or over eight, which measure parts, or over eight GPUs,
    which measure parts of these.
    """
    from jaxnorm import linear

    choose = linear.Forms.choose
    others = {
        "gpu": ("gpu", 1),
        "tpu": ("tpu", 1),
        "spread": ("cpu", 1000),
        "parts": ("cpu", 8),
        "gpus": ("gpu", 8),
    }
    if request.param != "cpu":
        told = others[request.param]
        monkeypatch.setattr(
            linear.Forms, "choose", lambda self, *_: choose(self, *told)
        )
    forget_what_was_traced()
    yield request.param
    forget_what_was_traced()


every_platform = pytest.mark.parametrize(
    "platform", ["cpu", "gpu", "tpu", "spread", "parts", "gpus"], indirect=True
)


@pytest.fixture(params=["few", "many"])
def number_of_devices(request, monkeypatch):
    """Run a test as on few devices, then as on many."""
    from jaxnorm import shifted

    if request.param == "many":
        monkeypatch.setattr(shifted, "FEW_DEVICES", 1)
    forget_what_was_traced()
    yield request.param
    forget_what_was_traced()


def forget_what_was_traced():
    """Clear what every jitted function of the package has kept.

    It would be taken for the same program.
    """
    modules = [m for name, m in sys.modules.items() if name.startswith("jaxnorm")]
    for function in {id(v): v for m in modules for v in vars(m).values()}.values():
        if hasattr(function, "clear_cache"):
            function.clear_cache()


@pytest.fixture(autouse=True)
def same_numbers(request, monkeypatch):
    """Let a test draw the same numbers whichever test ran before it."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))
