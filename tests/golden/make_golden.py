"""Make the reference data that `tests/test_golden.py` compares jaxnorm with.

Every case is one PyTorch module, run on stored inputs in float32 and, on the same
values, in float64: outputs and the gradients for the input, the weight and the bias
under a random cotangent; for BatchNorm in training also the running statistics after
each of three consecutive steps. PyTorch is needed to make the data, not to use it:

    pip install --group torch
    python tests/golden/make_golden.py

One file is written, `torch.npz`, with three members: `float32` and `float64`, the
values of all arrays one after another, and `index`, JSON (UTF-8) that says which
versions made them, what each case is and where its arrays lie. Two arrays with the
same values are stored once. The same versions on the same processor give the same
file, byte for byte.
"""

import argparse
import dataclasses
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

Arrays = dict[str, np.ndarray]

NUM_STEPS = 3
"""Training steps of each BatchNorm, so that averaging shows."""

# Small, and with sizes that differ, so that a wrong axis cannot go unseen. The key is
# the number of spatial axes; axis 1 holds the features, as PyTorch has it.
FEATURE_MAPS = {
    "0d": (8, 5),
    "1d": (4, 3, 7),
    "2d": (2, 4, 3, 5),
    "3d": (2, 3, 2, 4, 3),
}
GROUPED_MAPS = {
    "0d": (4, 6),
    "1d": (3, 6, 5),
    "2d": (2, 6, 3, 4),
    "3d": (2, 4, 2, 3, 3),
}
BATCH_NORMS = {
    "0d": nn.BatchNorm1d,
    "1d": nn.BatchNorm1d,
    "2d": nn.BatchNorm2d,
    "3d": nn.BatchNorm3d,
}
INSTANCE_NORMS = {
    "1d": nn.InstanceNorm1d,
    "2d": nn.InstanceNorm2d,
    "3d": nn.InstanceNorm3d,
}

AFFINE = ("weight", "bias")
SCALE_ONLY = ("weight",)
NO_AFFINE = ()

Distribution = Literal["plain", "offset", "spread", "outliers", "constant"]

SPECIAL: tuple[tuple[str, Distribution, float], ...] = (
    ("eps_1e-3", "plain", 1e-3),
    ("offset", "offset", 1e-5),
    ("spread", "spread", 1e-5),
    ("outliers", "outliers", 1e-5),
    ("constant", "constant", 1e-5),
)
"""Label, input and eps of the cases that each function has for one shape only."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One module and the input it is run on.

    Attributes:
      function: name of the jaxnorm function that does the same.
      label: what is special about the case; the last part of its name.
      shape: shape of the input, of one step.
      parameters: the parameters the module has.
      distribution: how the input is drawn; see `draw`.
      options: arguments of the module, in PyTorch's words.
      training: the mode of a BatchNorm; None for all others.
    """

    function: str
    label: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    distribution: Distribution
    options: dict[str, Any]
    training: bool | None = None

    @property
    def name(self) -> str:
        """The name of the case, unique, readable as a test id."""
        mode = {None: "", True: "-train", False: "-eval"}[self.training]
        affine = {0: "no_affine", 1: "scale_only", 2: "affine"}[len(self.parameters)]
        return f"{self.function}{mode}-{self.label}-{affine}"

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """The shape of the weight and of the bias."""
        normalized = self.options.get("normalized_shape", self.shape[1:2])
        return tuple(normalized)


def batch_norm_cases(training: bool) -> Iterator[Case]:
    """Yield BatchNorm in training or in evaluation."""
    for rank, shape in FEATURE_MAPS.items():
        for momentum in (0.1, None):
            label = f"{rank}-momentum_{momentum}"
            options = {"momentum": momentum, "eps": 1e-5}
            for parameters in (AFFINE, NO_AFFINE):
                yield Case(
                    "batch_norm", label, shape, parameters, "plain", options, training
                )
    for label, distribution, eps in SPECIAL:
        label = f"2d-momentum_0.4-{label}"
        options = {"momentum": 0.4, "eps": eps}
        shape = FEATURE_MAPS["2d"]
        yield Case("batch_norm", label, shape, AFFINE, distribution, options, training)


def layer_norm_cases() -> Iterator[Case]:
    """Yield LayerNorm and RMSNorm over the last one, two and three axes."""
    shape = (3, 2, 4, 5)
    for function, choices in (
        ("layer_norm", (AFFINE, SCALE_ONLY, NO_AFFINE)),
        ("rms_norm", (SCALE_ONLY, NO_AFFINE)),
    ):
        for axes in (1, 2, 3):
            options = {"normalized_shape": shape[-axes:], "eps": 1e-5}
            for parameters in choices:
                yield Case(
                    function, f"{axes}_axes", shape, parameters, "plain", options
                )
        for label, distribution, eps in SPECIAL:
            options = {"normalized_shape": shape[-2:], "eps": eps}
            label = f"2_axes-{label}"
            yield Case(function, label, shape, choices[0], distribution, options)
    # What nn.RMSNorm(eps=None) takes for float32.
    eps = float(np.finfo(np.float32).eps)
    options = {"normalized_shape": shape[-1:], "eps": eps}
    yield Case("rms_norm", "1_axes-eps_float32", shape, SCALE_ONLY, "plain", options)


def group_norm_cases() -> Iterator[Case]:
    """Yield GroupNorm, from one group to one for each feature."""
    for rank, num_groups in (
        ("0d", 2),
        *(("1d", num_groups) for num_groups in (1, 2, 3, 6)),
        ("2d", 3),
        ("3d", 2),
    ):
        label = f"{rank}-{num_groups}_groups"
        options = {"num_groups": num_groups, "eps": 1e-5}
        for parameters in (AFFINE, NO_AFFINE):
            shape = GROUPED_MAPS[rank]
            yield Case("group_norm", label, shape, parameters, "plain", options)
    for label, distribution, eps in SPECIAL:
        label = f"2d-3_groups-{label}"
        options = {"num_groups": 3, "eps": eps}
        shape = GROUPED_MAPS["2d"]
        yield Case("group_norm", label, shape, AFFINE, distribution, options)


def instance_norm_cases() -> Iterator[Case]:
    """Yield InstanceNorm, which needs a spatial axis."""
    for rank in INSTANCE_NORMS:
        for parameters in (AFFINE, NO_AFFINE):
            shape = FEATURE_MAPS[rank]
            yield Case("instance_norm", rank, shape, parameters, "plain", {"eps": 1e-5})
    for label, distribution, eps in SPECIAL:
        shape = FEATURE_MAPS["2d"]
        options = {"eps": eps}
        yield Case("instance_norm", f"2d-{label}", shape, AFFINE, distribution, options)


def draw(rng: np.random.Generator, case: Case) -> np.ndarray:
    """Draw one float32 input.

    `plain` has standard deviation 2 and means 0.5, 1, 1.5 and so on by feature;
    `offset` is N(100, 1); `spread` has features with standard deviations from 1e-3
    (where eps outweighs the variance) to 1e3; `outliers` is N(0, 1) with a twentieth
    of the values 1000 times larger; `constant` is N(0, 1) but for the first feature,
    which is 3.3 everywhere.
    """
    x = rng.standard_normal(case.shape)
    features = np.arange(case.shape[1]).reshape(-1, *[1] * (len(case.shape) - 2))
    if case.distribution == "plain":
        x = 0.5 * (features + 1) + 2 * x
    elif case.distribution == "offset":
        x = 100 + x
    elif case.distribution == "spread":
        x = x * 10.0 ** np.linspace(-3, 3, case.shape[1]).reshape(features.shape)
    elif case.distribution == "outliers":
        x = np.where(rng.random(case.shape) < 0.05, 1000 * x, x)
    else:
        x = np.where(features == 0, 3.3, x)
    return x.astype(np.float32)


def make_inputs(case: Case) -> Arrays:
    """Draw the inputs of a case; the leading axis of a training case is the step.

    Cases that differ only in parameters, momentum or eps see the same values.
    """
    seed = f"{case.function} {case.shape} {case.distribution} {case.training}"
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    if case.training:
        x = np.stack([draw(rng, case) for _ in range(NUM_STEPS)])
    else:
        x = draw(rng, case)
    inputs = {"x": x, "cotangent": rng.standard_normal(x.shape, dtype=np.float32)}
    weight = 1 + 0.5 * rng.standard_normal(case.parameter_shape)
    bias = rng.standard_normal(case.parameter_shape)
    for name, values in (("weight", weight), ("bias", bias)):
        if name in case.parameters:
            inputs[name] = values.astype(np.float32)
    if case.training is False:
        # The statistics that the training case of the same name has reached.
        training_case = dataclasses.replace(case, training=True)
        trained = run(training_case, make_inputs(training_case), torch.float32)
        inputs["running_mean"] = trained["running_mean"][-1]
        inputs["running_var"] = trained["running_var"][-1]
    return inputs


def make_module(case: Case) -> nn.Module:
    """Build the module of a case, in training mode, with fresh parameters."""
    options = case.options
    rank = f"{len(case.shape) - 2}d"
    affine = bool(case.parameters)
    if case.function == "batch_norm":
        return BATCH_NORMS[rank](case.shape[1], affine=affine, **options)
    if case.function == "layer_norm":
        bias = "bias" in case.parameters
        return nn.LayerNorm(elementwise_affine=affine, bias=bias, **options)
    if case.function == "rms_norm":
        return nn.RMSNorm(elementwise_affine=affine, **options)
    if case.function == "group_norm":
        return nn.GroupNorm(num_channels=case.shape[1], affine=affine, **options)
    return INSTANCE_NORMS[rank](case.shape[1], affine=affine, **options)


def run(case: Case, inputs: Arrays, dtype: torch.dtype) -> Arrays:
    """Run a case in one precision.

    Returns:
      `output`, `grad_x`, where the module has them `grad_weight` and `grad_bias`, and
      in training `running_mean` and `running_var`. The arrays of a training case have
      the step as leading axis.
    """
    module = make_module(case).to(dtype)
    state = {
        name: torch.from_numpy(inputs[name]).to(dtype)
        for name in (*case.parameters, "running_mean", "running_var")
        if name in inputs
    }
    module.load_state_dict(state, strict=False)
    module.train(case.training is not False)

    def step(x: np.ndarray, cotangent: np.ndarray) -> Arrays:
        tensor = torch.from_numpy(x).to(dtype).requires_grad_()
        module.zero_grad()
        output = module(tensor)
        output.backward(torch.from_numpy(cotangent).to(dtype))
        assert tensor.grad is not None
        results = {"output": output.detach(), "grad_x": tensor.grad}
        for name in case.parameters:
            results[f"grad_{name}"] = module.get_parameter(name).grad
        if case.training:
            for name in ("running_mean", "running_var"):
                results[name] = module.get_buffer(name)
        return {name: value.numpy().copy() for name, value in results.items()}

    if not case.training:
        return step(inputs["x"], inputs["cotangent"])
    steps = [step(*pair) for pair in zip(inputs["x"], inputs["cotangent"], strict=True)]
    return {name: np.stack([results[name] for results in steps]) for name in steps[0]}


class Store:
    """Arrays of one dtype, one after another, each set of values once."""

    def __init__(self) -> None:
        """Start an empty store."""
        self._chunks: list[np.ndarray] = []
        self._offsets: dict[bytes, int] = {}
        self._size = 0

    def add(self, arrays: Arrays) -> dict[str, dict[str, Any]]:
        """Add arrays and return where each lies: its offset and its shape."""
        places = {}
        for name, array in arrays.items():
            content = array.tobytes()
            if content not in self._offsets:
                self._offsets[content] = self._size
                self._chunks.append(array.ravel())
                self._size += array.size
            places[name] = {"offset": self._offsets[content], "shape": array.shape}
        return places

    def concatenate(self) -> np.ndarray:
        """Return all values."""
        return np.concatenate(self._chunks)


def main() -> None:
    """Make the data and write them."""
    parser = argparse.ArgumentParser(description="Make reference data with PyTorch.")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).with_name("torch.npz"),
        help="the file to write (default: %(default)s)",
    )
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    stores = {"float32": Store(), "float64": Store()}
    entries = []
    for case in (
        *batch_norm_cases(training=True),
        *batch_norm_cases(training=False),
        *layer_norm_cases(),
        *group_norm_cases(),
        *instance_norm_cases(),
    ):
        inputs = make_inputs(case)
        entry = {
            "name": case.name,
            "function": case.function,
            "training": case.training,
            "options": case.options,
            "inputs": stores["float32"].add(inputs),
        }
        for precision, store in stores.items():
            entry[precision] = store.add(run(case, inputs, getattr(torch, precision)))
        entries.append(entry)
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names), "two cases have the same name"

    index = {"torch": torch.__version__, "numpy": np.__version__, "cases": entries}
    text = json.dumps(index, separators=(",", ":"))
    np.savez_compressed(
        output,
        index=np.frombuffer(text.encode(), np.uint8),
        float32=stores["float32"].concatenate(),
        float64=stores["float64"].concatenate(),
    )
    size = output.stat().st_size / 1024
    print(
        f"{output}: {len(entries)} cases, PyTorch {torch.__version__}, {size:.0f} KiB"
    )


if __name__ == "__main__":
    main()
