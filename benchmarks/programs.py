"""From a provider's function to a compiled program that can be run and looked into."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.costs import Costs, measure_costs
from benchmarks.providers import Function, Provider
from benchmarks.shapes import SYNC_AXIS, SYNC_DEVICES, Case, Mode

Inputs = dict[str, np.ndarray]

# The arguments of each mode, in order. All of them are passed in, so that nothing can
# be computed at compile time.
PRIMALS = ("x", "scale", "bias", "mean", "var")
ARGUMENTS: dict[Mode, tuple[str, ...]] = {
    "forward": PRIMALS,
    "vjp": (*PRIMALS, "ct"),
    "jvp": (*PRIMALS, "t_x", "t_scale", "t_bias"),
}
OF_INPUT_SHAPE = ("x", "ct", "t_x")


@dataclass
class Program:
    """Something that can be timed.

    Attributes:
      call: computes with the placed inputs, and returns when the result is there.
      place: copies the inputs to the device.
      arrays: the inputs as they were placed last.
      name_results: from what `call` returns to what all providers agree upon, by name:
        "y", and the gradients or the tangent; float32, features last.
      compile_seconds: time to trace, lower and compile; None where nothing is compiled.
      costs: what the compiler says of the program, where there is a compiler.
    """

    call: Callable[..., Any]
    place: Callable[[], list[Any]]
    arrays: list[Any]
    name_results: Callable[[Any], dict[str, np.ndarray]]
    compile_seconds: float | None = None
    costs: Costs | None = None

    def move(self) -> None:
        """Put the inputs elsewhere in memory."""
        self.arrays = self.place()

    def run(self) -> Any:
        """Compute once."""
        return self.call(*self.arrays)

    def results(self) -> dict[str, np.ndarray]:
        """Compute once, and return the results by name."""
        return self.name_results(self.run())


def make_inputs(case: Case, mode: Mode) -> Inputs:
    """Return fresh random arrays: those of input shape in the case's dtype."""
    rng = np.random.default_rng(0)
    dtype = jnp.dtype(case.dtype)
    inputs: Inputs = {}
    for name in ARGUMENTS[mode]:
        shape = case.shape if name in OF_INPUT_SHAPE else (case.features,)
        values = rng.standard_normal(shape, np.float32)
        if name in ("var", "scale"):
            values = 0.5 + np.abs(values)
        inputs[name] = values.astype(dtype) if name in OF_INPUT_SHAPE else values
    return inputs


def in_mode(function: Function, mode: Mode) -> Callable[..., Any]:
    """Return what a mode computes: gradients, or tangents, for x, scale and bias."""
    if mode == "forward":
        return function

    def forward_backward(x, scale, bias, mean, var, ct):
        y, pull_back, stats = jax.vjp(
            lambda *p: function(*p, mean, var), x, scale, bias, has_aux=True
        )
        return y, stats, pull_back(ct)

    def forward_tangent(x, scale, bias, mean, var, *tangents):
        return jax.jvp(
            lambda *p: function(*p, mean, var), (x, scale, bias), tangents, has_aux=True
        )

    return forward_backward if mode == "vjp" else forward_tangent


def on_devices(function: Function, mesh: Mesh, *, check_vma: bool) -> Function:
    """Spread the rows of x over the devices of a mesh; the rest is on each of them."""
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(P(SYNC_AXIS), P(), P(), P(), P()),
        out_specs=(P(SYNC_AXIS), P()),
        check_vma=check_vma,
    )


def sync_mesh() -> Mesh:
    """Return the devices that a batch is spread over."""
    return Mesh(np.array(jax.devices()[:SYNC_DEVICES]), (SYNC_AXIS,))


def place(case: Case, inputs: Inputs, *, channels_first: bool = False) -> list[Any]:
    """Copy the inputs to the device, or devices, in the layout a provider takes."""
    arrays = []
    for name, array in inputs.items():
        if channels_first and name in OF_INPUT_SHAPE and len(case.shape) == 4:
            array = np.moveaxis(array, -1, 1)
        array = np.array(array, order="C")  # a copy, as a CPU device shares the memory
        if case.devices == 1:
            arrays.append(jax.device_put(array))
        else:
            spec = P(SYNC_AXIS) if name in OF_INPUT_SHAPE else P()
            arrays.append(jax.device_put(array, NamedSharding(sync_mesh(), spec)))
    return arrays


def compile_case(
    provider: Provider,
    case: Case,
    mode: Mode,
    inputs: Inputs,
    *,
    with_costs: bool = True,
) -> Program | None:
    """Compile a provider's program of a case, None where it has no such operation."""
    if not provider.is_jax:
        from benchmarks.providers import with_torch

        return with_torch.compile_program(case, mode, inputs)
    function = provider.build(case)
    if function is None:
        return None
    if case.op == "batch_norm_eval":
        function = _without_statistics(function)
    new_arrays = partial(place, case, inputs, channels_first=provider.channels_first)
    arrays = new_arrays()
    if case.axis_name is not None:
        function = on_devices(function, sync_mesh(), check_vma=provider.check_vma)
    start = time.perf_counter()
    compiled = jax.jit(in_mode(function, mode)).lower(*arrays).compile()
    seconds = time.perf_counter() - start
    costs = None
    if with_costs:
        costs = measure_costs(case, mode, function, compiled, arrays)

    return Program(
        lambda *arrays: jax.block_until_ready(compiled(*arrays)),
        new_arrays,
        arrays,
        partial(_name_results, provider, case, mode),
        compile_seconds=seconds,
        costs=costs,
    )


def _without_statistics(function: Function) -> Function:
    """Drop statistics that are as they were; returned from jit they would be copied."""
    return lambda *arrays: (function(*arrays)[0], ())


def _name_results(
    provider: Provider, case: Case, mode: Mode, results: Any
) -> dict[str, np.ndarray]:
    """Return results by name, without the running statistics."""
    if mode == "vjp":
        y, _, grads = results
        named = dict(zip(("y", "dx", "dscale", "dbias"), (y, *grads), strict=True))
    else:
        named = dict(zip(("y", "t_y"), results[: 1 + (mode == "jvp")], strict=False))
    if provider.channels_first:
        named = {
            name: np.moveaxis(value, 1, -1) if value.ndim == 4 else value
            for name, value in named.items()
        }
    return {name: np.asarray(value, np.float32) for name, value in named.items()}


def copy_program(case: Case, inputs: Inputs) -> Program:
    """Return one pass over x, compiled: what operations on it are measured against.

    The bits are read as integers and incremented, so that no dtype is slow by its
    arithmetic and the compiler has to write what it reads.
    """
    bits = jnp.uint32 if case.itemsize == 4 else jnp.uint16
    new_arrays = partial(place, case, {"x": inputs["x"]})
    arrays = new_arrays()
    copy = jax.jit(lambda x: lax.bitcast_convert_type(x, bits) + 1)
    compiled = copy.lower(*arrays).compile()

    return Program(
        lambda x: jax.block_until_ready(compiled(x)), new_arrays, arrays, lambda _: {}
    )
