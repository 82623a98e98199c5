"""What the text of a compiled program says: its kernels, and what they read and write.

The compilers of GPUs and TPUs count less of that in `cost_analysis` than XLA:CPU does.
"""

import math
import re

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*?\{\n(.*?)^\}", re.M | re.S)
INSTRUCTION = re.compile(r"^\s*(ROOT )?%(\S+) = (.+?) ([\w-]+)\((.*?)\)(.*)$", re.M)
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What takes no time. (The end of something asynchronous, "-done", is counted already.)
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "partition-id",
    "replica-id",
    "after-all",
}


def entry(text: str) -> str:
    """Return the computation that a program begins with, without what describes it."""
    body = text[text.index("\nENTRY ") + 1 :]
    return re.sub(r", metadata=\{.*?\}|/\*.*?\*/", "", body)


def count_kernels(text: str) -> int:
    """Return how many operations of a program a device is told to run."""
    operations = [match[4] for match in INSTRUCTION.finditer(entry(text))]
    return sum(op not in FREE and not op.endswith("-done") for op in operations)


def bytes_moved(text: str) -> int:
    """Return the bytes that kernels read and write; of what they slice, the slices."""
    sliced = {name: _sliced_bytes(body) for name, body in COMPUTATION.findall(text)}
    sizes: dict[str, int] = {}
    moved = 0
    for _, name, kind, op, operands, rest in INSTRUCTION.findall(entry(text)):
        sizes[name] = _bytes(kind)
        if op in FREE or op.endswith("-done"):
            continue
        called = re.search(r"calls=%([\w.-]+)", rest)
        of_slices = sliced[called[1]] if called else {}
        names = re.findall(r"%([^\s,]+)", operands)
        read = {n: of_slices.get(i, sizes.get(n, 0)) for i, n in enumerate(names)}
        moved += sizes[name] + sum(read.values())
    return moved


def estimated_cycles(text: str) -> int | None:
    """Return the cycles that the compiler of a TPU reckons with; None of others."""
    cycles = CYCLES.findall(text[text.index("\nENTRY ") :])
    return sum(map(int, cycles)) if cycles else None


def _bytes(kind: str) -> int:
    return sum(
        math.prod(int(n) for n in sizes.split(",") if n)
        * (BITS.get(dtype) or int(re.sub(r"\D", "", dtype)))
        // 8
        for dtype, sizes in ARRAY.findall(kind)
    )


def _sliced_bytes(body: str) -> dict[int, int]:
    """Return, for parameters of a kernel that it only slices, the bytes of slices."""
    instructions = INSTRUCTION.findall(body)

    def bytes_used(name: str) -> int | None:
        """Return None if something else than slices is made of it."""
        used = 0
        for _, user, kind, op, operands, _ in instructions:
            if not re.search(rf"%{re.escape(name)}(?![\w.-])", operands):
                continue
            more = bytes_used(user) if op in ("bitcast", "reshape") else None
            more = _bytes(kind) if op == "slice" else more
            if more is None:
                return None
            used += more
        return used

    parameters = {
        name: int(i) for _, name, _, op, i, _ in instructions if op == "parameter"
    }
    uses = {i: bytes_used(name) for name, i in parameters.items()}
    return {i: used for i, used in uses.items() if used is not None}
