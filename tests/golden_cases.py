"""The stored cases of PyTorch that `golden/make_golden.py` made."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "torch.npz"

Arrays = dict[str, np.ndarray]


class Program(NamedTuple):
    """What jaxnorm has to compute; hashable.

    Attributes:
      function: name of a jaxnorm function.
      training: mode of batch_norm, None for the others.
      eps: as in jaxnorm and PyTorch.
      momentum: PyTorch's, in training; None is the equal-weight average.
      num_groups: of group_norm.
      num_axes: how many trailing axes layer_norm and rms_norm normalize over.
    """

    function: str
    training: bool | None
    eps: float
    momentum: float | None
    num_groups: int | None
    num_axes: int | None


class Case(NamedTuple):
    """A program, its inputs (float32) and PyTorch's results in two precisions.

    Axis 1 holds the features. In a BatchNorm training case there is an axis in front of
    all others that holds the steps; in `inputs` only "x" and "cotangent" have it.
    """

    name: str
    program: Program
    inputs: Arrays
    expected: dict[str, Arrays]


def load_cases() -> list[Case]:
    """Read the stored cases."""
    with np.load(GOLDEN) as file:
        values = {name: file[name] for name in ("float32", "float64")}
        index = json.loads(bytes(file["index"]))

    def take(places: dict[str, Any], precision: str) -> Arrays:
        arrays = {}
        for name, place in places.items():
            start, shape = place["offset"], place["shape"]
            stop = start + int(np.prod(shape))
            arrays[name] = values[precision][start:stop].reshape(shape)
        return arrays

    cases = []
    for entry in index["cases"]:
        options, training = entry["options"], entry["training"]
        program = Program(
            entry["function"],
            training,
            options["eps"],
            options["momentum"] if training else None,
            options.get("num_groups"),
            len(options.get("normalized_shape", ())) or None,
        )
        expected = {
            precision: take(entry[precision], precision) for precision in values
        }
        inputs = take(entry["inputs"], "float32")
        cases.append(Case(entry["name"], program, inputs, expected))
    return cases
