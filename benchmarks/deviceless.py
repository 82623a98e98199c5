"""Compile the norms for a GPU or a TPU that is not there, and count what they cost.

XLA compiles for a device by its description. Nothing runs, so no time is measured.
Counted are kernels, the passes over an array of input size that they make, the cycles
that the compiler of a TPU reckons with, and collectives. A norm is compiled where it is
used, in a network of two products with the norm and a ReLU between them. (By itself its
input and output would have the layouts of arguments and results.)

python -m benchmarks.deviceless --device h100
python -m benchmarks.deviceless --help
"""

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from benchmarks import hlo
from benchmarks.costs import list_collectives
from benchmarks.programs import OF_INPUT_SHAPE, on_devices
from benchmarks.providers import PROVIDERS, SUBJECT, Function
from benchmarks.shapes import (
    OPS,
    SHAPE_NAMES,
    SYNC_AXIS,
    Case,
    Dtype,
    select_cases,
    shape_name,
)
from examples.common.options import one_line_errors

DeviceName = Literal["h100", "v5e"]
OpName = Literal[tuple(OPS)]
ShapeName = Literal[SHAPE_NAMES]
PeerName = Literal["linen", "nnx", "haiku", "jax.nn"]
Phase = Literal["forward", "training"]
NO_NORM = "none"
COMPILERS = {"h100": "jax_cuda12_plugin", "v5e": "libtpu"}

TARGET = Path(__file__).parent / "targets" / "h100.txtpb"


@dataclass(frozen=True)
class Config:
    """Compile the norms for a GPU or a TPU that is not there, and count their cost.

    It needs `pip install --group deviceless`. Every filter takes several names; without
    it all are compiled.
    """

    device: DeviceName = "h100"
    """What to compile for."""
    ops: tuple[OpName, ...] = ()
    """Only these operations."""
    shapes: tuple[ShapeName, ...] = ()
    """Only these shapes."""
    dtypes: tuple[Dtype, ...] = ()
    """Only these dtypes."""
    peer: PeerName = "linen"
    """The peer beside jaxnorm."""
    spread: bool = False
    """Spread the batch over four devices, under plain jit."""
    out: Path = Path("runs/benchmarks")
    """Where deviceless-DEVICE.json goes, or deviceless-DEVICE-spread.json."""


@dataclass(frozen=True)
class Count:
    """What a network with a norm costs.

    Attributes:
      case: operation, shape and dtype of the norm.
      phase: the forward pass alone, or with the gradients.
      provider: whose norm it is; "none" where there is none.
      kernels: operations that a device is told to run.
      passes: bytes that they read and write, over those of the norm's input.
      cycles: what the compiler of a TPU reckons with; None on a GPU.
      collectives: operations that talk to other devices.
    """

    case: Case
    phase: Phase
    provider: str
    kernels: int
    passes: float
    cycles: int | None
    collectives: int

    @property
    def cost(self) -> float:
        """What is compared: cycles, or passes where there are none."""
        return self.passes if self.cycles is None else self.cycles


def main(config: Config) -> None:
    """Compile, print a table, and write the JSON."""
    devices = describe(config.device)
    filters = config.ops, config.shapes, config.dtypes
    cases = select_cases(*filters, spread=config.spread)
    if not cases:
        raise ValueError("the filters leave nothing to count: leave one of them out")
    counts: list[Count] = []
    for case in tqdm(cases, unit="case", disable=None):
        names = (SUBJECT, config.peer, NO_NORM)
        each = [row for name in names for row in count(case, name, devices)]
        each.sort(key=lambda row: row.phase)
        print_case(case, each)
        counts += each
    print_means(counts)
    config.out.mkdir(parents=True, exist_ok=True)
    name = f"deviceless-{config.device}{'-spread' if config.spread else ''}.json"
    path = config.out / name
    rows = {
        "device": devices[0].device_kind,
        "jax": jax.__version__,
        "rows": list(map(asdict, counts)),
    }
    path.write_text(json.dumps(rows, indent=1))
    print(f"Wrote {path}")


def describe(device: DeviceName) -> Sequence[Any]:
    """Return four devices of a kind, as XLA knows them by a description."""
    if importlib.util.find_spec(COMPILERS[device]) is None:
        raise ModuleNotFoundError(
            f"The compiler for {device} is not installed: no module "
            f"{COMPILERS[device]}. Run pip install --group deviceless."
        )
    jax.config.update("jax_platforms", "cpu")  # nothing else is there to run on
    if device == "h100":
        options = {"topology": "1x1x4", "target_config": TARGET.read_text()}
        return topologies.get_topology_desc(platform="cuda", **options).devices
    # Otherwise it asks the network what machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices


def count(case: Case, provider: str, devices: Sequence[Any]) -> list[Count]:
    """Compile the networks of a case; none where there is no such operation."""
    mesh = Mesh(np.array(devices[: case.devices]), (SYNC_AXIS,))
    if provider == NO_NORM:
        function = no_norm
    else:
        function = PROVIDERS[provider].build(case)
        if function is None:
            return []
        if case.axis_name:
            checked = PROVIDERS[provider].check_vma
            function = on_devices(function, mesh, check_vma=checked)
    return [
        count_network(function, case, phase, provider, mesh)
        for phase in ("forward", "training")
    ]


def no_norm(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> tuple[Any, Any]:
    """Return what a norm would, without one."""
    return x, (mean, var)


def network(function: Function, phase: Phase) -> Callable[..., Any]:
    """Return two products with a norm and a ReLU between them, or its gradients."""

    def forward(weights, scale, bias, x, mean, var):
        first, second = weights
        y, stats = function(x @ first, scale, bias, mean, var)
        return jax.nn.relu(y) @ second, stats

    def loss(*arguments):
        out, stats = forward(*arguments)
        return jnp.sum(jnp.square(out.astype(jnp.float32))), stats

    return forward if phase == "forward" else jax.grad(loss, (0, 1, 2, 3), has_aux=True)


def count_network(
    function: Function, case: Case, phase: Phase, provider: str, mesh: Mesh
) -> Count:
    """Compile a network and count."""
    scale, bias, x, mean, var = (
        _describe_array(case, name, mesh)
        for name in ("scale", "bias", "x", "mean", "var")
    )
    square = jax.ShapeDtypeStruct(
        (case.features,) * 2, x.dtype, sharding=NamedSharding(mesh, P())
    )
    arguments = (square, square), scale, bias, x, mean, var
    compiled = jax.jit(network(function, phase)).lower(*arguments).compile()
    text = compiled.as_text()
    return Count(
        case,
        phase,
        provider,
        kernels=hlo.count_kernels(text),
        passes=hlo.bytes_moved(text) / (case.size * case.itemsize / mesh.size),
        cycles=hlo.estimated_cycles(text),
        collectives=len(list_collectives(compiled)),
    )


def _describe_array(case: Case, name: str, mesh: Mesh) -> jax.ShapeDtypeStruct:
    large = name in OF_INPUT_SHAPE
    shape = case.shape if large else (case.features,)
    sharding = NamedSharding(mesh, P(SYNC_AXIS) if large else P())
    dtype = jnp.dtype(case.dtype) if large else jnp.float32
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def print_case(case: Case, counts: Sequence[Count]) -> None:
    """Print the counts of one case."""
    tqdm.write(f"{case.op} {shape_name(case.shape)} {case.dtype}")
    for c in counts:
        text = f"  {c.phase:9}{c.provider:9}{c.kernels:4} kernels{c.passes:6.1f} passes"
        text += "" if c.cycles is None else f"{c.cycles / 1000:8.1f} kcycles"
        tqdm.write(text + (f"{c.collectives:3} collectives" if c.collectives else ""))


def print_means(counts: Sequence[Count]) -> None:
    """Print geometric means of what others cost over jaxnorm's cost."""
    print("\nCycles (TPU) or bytes (GPU) over those with jaxnorm, geometric means")
    for (op, dtype, provider), ratios in mean_ratios(counts).items():
        each = (f"{phase} {ratio:.2f}" for phase, ratio in ratios.items())
        print(f"  {op:16}{dtype:9} {provider:8}", *each)


def mean_ratios(
    counts: Sequence[Count],
) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return the means over shapes, for every operation, dtype and provider."""
    own = {(c.case, c.phase): c.cost for c in counts if c.provider == SUBJECT}
    ratios: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for c in counts:
        if c.provider != SUBJECT:
            of_case = ratios.setdefault((c.case.op, c.case.dtype, c.provider), {})
            of_case.setdefault(c.phase, []).append(c.cost / own[c.case, c.phase])
    return {
        key: {phase: geometric_mean(values) for phase, values in phases.items()}
        for key, phases in ratios.items()
    }


if __name__ == "__main__":
    with one_line_errors(ModuleNotFoundError, ValueError):
        main(tyro.cli(Config, prog="python -m benchmarks.deviceless"))
