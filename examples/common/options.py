"""What the command lines of the examples have in common."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.common import report

OPTIONS = "options.json"  # what a run was begun with, beside its checkpoints


class OptionsChangedError(ValueError):
    """A run is resumed with options that it was not begun with."""


def require_positive(**options: float | None) -> None:
    """Raise ValueError for the first option that is not positive; None is no option."""
    for name, value in options.items():
        if value is not None and not value > 0:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be positive, and it is {value}")


def require_not_negative(**options: float) -> None:
    """Raise ValueError for the first option that is below 0."""
    for name, value in options.items():
        if not value >= 0:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must not be negative, and it is {value}")


def remember_options(out: Path, **options: Any) -> None:
    """Write down what a run is begun with."""
    report.write_json(out / OPTIONS, options)


def require_same(out: Path, **options: Any) -> None:
    """Raise OptionsChangedError for what is not as it was when the run was begun."""
    path = out / OPTIONS
    before = json.loads(path.read_text()) if path.exists() else {}
    changed = [
        f"--{name.replace('_', '-')} was {before[name]}, and is {value}"
        for name, value in options.items()
        if before.get(name, value) != value
    ]
    if changed:
        raise OptionsChangedError(
            f"a run is resumed with the options it was begun with: {'; '.join(changed)}"
        )


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with the message alone where its user can mend the error."""
    try:
        yield
    except kinds as error:
        sys.exit(f"error: {error}")
