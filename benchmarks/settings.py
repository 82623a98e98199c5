"""What is the same for every provider: allocator, cores, and a record of both.

glibc hands large buffers back to the system after each call and takes them anew; the
page faults can cost more than the kernel that fills them. The allocator is configured
before a process starts, so the runner replaces itself by a process that has it right.
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
}
# Threads of one library must not spin on the cores while another library is timed.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
RECORDED = ("XLA_FLAGS", "JAX_PLATFORMS", "LD_PRELOAD", "OMP_NUM_THREADS")
PACKAGES = ("jax", "jaxlib", "flax", "dm-haiku", "equinox", "torch", "numpy")


def missing_settings() -> dict[str, str]:
    """Return the variables that this process was started without.

    What a user has set is left alone, and recorded with the results.
    """
    wanted = {**THREADS, **(ALLOCATOR if sys.platform == "linux" else {})}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def restart_with_settings(module: str, arguments: Sequence[str]) -> None:
    """Replace this process by `python -m module arguments` with the right settings.

    Returns where there is nothing to set.
    """
    missing = missing_settings()
    if missing:
        command = [sys.executable, "-m", module, *arguments]
        os.execve(sys.executable, command, {**os.environ, **missing})


@contextmanager
def own_cache(folder: str | None = None) -> Iterator[None]:
    """Take compiled programs from `folder`, if there is one, and from nowhere else.

    With what JAX's cache holds the time to compile would look short. What is compiled
    goes to the folder, which takes a little of that time.
    """
    import jax

    wanted = {
        "jax_enable_compilation_cache": folder is not None,
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    _configure(wanted)
    try:
        yield
    finally:
        _configure(before)


def _configure(values: dict[str, Any]) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX would go on with the folder of before


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_environment() -> dict[str, Any]:
    """Return device, versions, cores and settings, as they go into the JSON."""
    import jax

    devices = jax.devices()
    names = (*ALLOCATOR, *THREADS, *RECORDED)
    return {
        "device": _processor() if devices[0].platform == "cpu" else None,
        "device_kind": devices[0].device_kind,
        "platform": devices[0].platform,
        "device_count": len(devices),
        "cores": count_cores(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "settings": {name: os.environ.get(name) for name in names},
    }


def device_name(environment: dict[str, Any]) -> str:
    """Return what figures call the device."""
    return environment["device"] or environment["device_kind"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the name of the processor, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
