"""What the command lines of the examples have in common."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def require_positive(**options: float | None) -> None:
    """Raise ValueError for the first option that is not positive; None is no option."""
    for name, value in options.items():
        if value is not None and not 0 < value < math.inf:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be positive, and it is {value}")


def require_not_negative(**options: float) -> None:
    """Raise ValueError for the first option that is below 0."""
    for name, value in options.items():
        if not value >= 0:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must not be negative, and it is {value}")


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with the message alone where its user can mend the error."""
    try:
        yield
    except kinds as error:
        sys.exit(f"error: {error}")
