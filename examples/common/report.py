"""How an example tells its results: a table for people, JSON for programs."""

import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def print_table(
    console: Console, title: str, rows: Sequence[Mapping[str, str]], *, padding: int = 1
) -> None:
    """Print rows of the same columns; the first column names the row."""
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, padding),
        collapse_padding=True,
    )
    for index, column in enumerate(rows[0]):
        justify = "right" if index else "left"
        table.add_column(column, justify=justify, no_wrap=not index)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def format_number(value: float) -> str:
    """Return the number with four decimals, or shorter where it is huge."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def write_json(path: Path, results: Mapping[str, Any]) -> Path:
    """Write what any JSON reader accepts: paths as text, NaN and infinity as null."""
    text = json.dumps(_plain(results), indent=2, allow_nan=False)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    unfinished.write_text(text + "\n")
    os.replace(unfinished, path)  # whole, or as it was
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
