"""The one table of operations and shapes that the benchmarks run over.

Shapes are features-last. Those of the maps are ResNet-50's at batch 32; those of rank 2
and 3 are activations of multilayer perceptrons and transformers.
"""

import math
from dataclasses import dataclass
from typing import Literal

Mode = Literal["forward", "vjp", "jvp"]
Dtype = Literal["float32", "bfloat16"]

MODES: tuple[Mode, ...] = ("forward", "vjp", "jvp")
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
MODE_LABELS = {"forward": "forward", "vjp": "forward + backward", "jvp": "jvp"}

SYNC_DEVICES = 4
SYNC_AXIS = "devices"

Shape = tuple[int, ...]

MAPS: tuple[Shape, ...] = (
    (32, 56, 56, 64),
    (32, 28, 28, 128),
    (32, 14, 14, 256),
    (32, 7, 7, 512),
)
GROUPED: Shape = (8, 32, 32, 256)
NARROW: Shape = (4096, 512)
TOKENS: Shape = (4096, 768)
TALL: Shape = (32768, 256)
SEQUENCES: Shape = (8, 512, 768)

# How often an array of the input's size must be read or written: x, y; the cotangent
# and dx; the tangents of x and y. Where statistics are over the batch, what is reduced
# is read a second time to be normalized: a batch does not stay in a cache.
BATCH_PASSES: dict[Mode, int] = {"forward": 3, "vjp": 8, "jvp": 6}
LOCAL_PASSES: dict[Mode, int] = {"forward": 2, "vjp": 5, "jvp": 4}


@dataclass(frozen=True)
class Op:
    """One operation, and the shapes it is measured on.

    Attributes:
      name: what the command line calls it.
      label: what figures call it.
      shapes: the shapes of its input.
      quick: those of a quick run.
      passes: for every mode the least number of passes over an array of input size.
    """

    name: str
    label: str
    shapes: tuple[Shape, ...]
    quick: tuple[Shape, ...]
    passes: dict[Mode, int]


_BATCH_SHAPES = (*MAPS, NARROW, TALL)
_ROW_SHAPES = (NARROW, TOKENS, TALL, SEQUENCES)

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("batch_norm", "batch", _BATCH_SHAPES, (MAPS[1], NARROW), BATCH_PASSES),
        Op("batch_norm_eval", "batch, eval", _BATCH_SHAPES, (MAPS[1],), LOCAL_PASSES),
        Op("batch_norm_relu", "batch + ReLU", _BATCH_SHAPES, (MAPS[1],), BATCH_PASSES),
        Op("sync_batch_norm", "sync batch", _BATCH_SHAPES, (MAPS[2],), BATCH_PASSES),
        Op("layer_norm", "layer", _ROW_SHAPES, (TOKENS,), LOCAL_PASSES),
        Op("rms_norm", "RMS", _ROW_SHAPES, (TOKENS,), LOCAL_PASSES),
        Op("group_norm", "group", (*MAPS, GROUPED), (GROUPED,), LOCAL_PASSES),
        Op("instance_norm", "instance", (*MAPS, GROUPED), (MAPS[2],), LOCAL_PASSES),
    )
}


@dataclass(frozen=True)
class Case:
    """One operation on one shape and dtype: what a provider builds a function for.

    With `spread`, plain jit spreads the batch over devices.
    """

    op: str
    shape: Shape
    dtype: Dtype
    groups: int = 32
    spread: bool = False

    @property
    def features(self) -> int:
        """Size of the last axis, which scale and bias have too."""
        return self.shape[-1]

    @property
    def size(self) -> int:
        """Number of elements of the input."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the input."""
        return 4 if self.dtype == "float32" else 2

    @property
    def axis_name(self) -> str | None:
        """The device axis that `shard_map` spreads the batch over, if it does."""
        return SYNC_AXIS if self.op == "sync_batch_norm" else None

    @property
    def devices(self) -> int:
        """The number of devices that share the batch."""
        return SYNC_DEVICES if self.spread or self.axis_name else 1

    def minimal_bytes(self, mode: Mode) -> int:
        """Return the bytes that no implementation can do without."""
        return OPS[self.op].passes[mode] * self.size * self.itemsize


def shape_name(shape: Shape) -> str:
    """Return, for instance, "4096x512"."""
    return "x".join(map(str, shape))


SHAPE_NAMES = tuple(
    dict.fromkeys(shape_name(shape) for op in OPS.values() for shape in op.shapes)
)


def select_cases(
    ops: tuple[str, ...] = (),
    shapes: tuple[str, ...] = (),
    dtypes: tuple[Dtype, ...] = (),
    *,
    quick: bool = False,
    spread: bool = False,
) -> list[Case]:
    """Return the cases of the table; an empty filter keeps all of them.

    A quick run takes the quick shapes, unless shapes are named. If plain jit is to
    spread all batches, those that `shard_map` spreads are left out.
    """
    cases = [
        Case(op.name, shape, dtype, spread=spread)
        for op in OPS.values()
        if not ops or op.name in ops
        for shape in (op.quick if quick and not shapes else op.shapes)
        if not shapes or shape_name(shape) in shapes
        for dtype in dtypes or DTYPES
    ]
    return [case for case in cases if not (spread and case.axis_name)]
