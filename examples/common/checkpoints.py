"""What a run may be resumed from: checkpoints, and the options it was begun with."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.common import report

OPTIONS = "options.json"  # beside the checkpoints


class CheckpointError(ValueError):
    """A checkpoint is missing, in the way, or of another run or model."""


def remember_options(config: Any, names: Iterable[str]) -> None:
    """Write down, in `config.out`, what a run is begun with."""
    options = {name: getattr(config, name) for name in names}
    report.write_json(config.out / OPTIONS, options)


def read_json(path: Path) -> Any:
    """Return what a JSON file beside the checkpoints holds; {} if there is none."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}; remove it") from None


def require_same_options(config: Any) -> None:
    """Raise CheckpointError for what is not as it was when the run was begun."""
    before = read_json(config.out / OPTIONS)
    changed = [
        f"--{name.replace('_', '-')} was {value}, and is {getattr(config, name)}"
        for name, value in before.items()
        if getattr(config, name) != value
    ]
    if changed:
        raise CheckpointError(
            f"a run is resumed with the options it was begun with: {'; '.join(changed)}"
        )
