"""What every test needs before JAX starts: eight simulated devices, a compile cache."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
