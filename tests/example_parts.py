"""What the tests of the examples share."""

from pathlib import Path

import matplotlib.image
import numpy as np

from examples.common import data


def counting_data(count: int) -> data.Dataset:
    """Rows that are told apart by their label and by their only pixel."""
    labels = np.arange(count, dtype=np.int32)
    return data.Dataset(labels.reshape(-1, 1, 1, 1).astype(np.float32) + 1, labels)


def assert_is_picture(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 200
    assert pixels.std() > 0.01
