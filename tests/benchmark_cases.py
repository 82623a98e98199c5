"""Cases of the benchmark that are small enough for tests."""

from benchmarks.shapes import Case


def small_case(op: str, dtype: str = "float32") -> Case:
    """Return a case of an operation, of a few hundred elements."""
    rows = op in ("layer_norm", "rms_norm")
    return Case(op, (24, 16) if rows else (8, 3, 3, 8), dtype, groups=4)
