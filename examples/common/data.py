"""The digits images that ship with scikit-learn, cut into batches of one shape."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits as load_bundled_digits
from sklearn.model_selection import train_test_split

CLASSES = 10
TEST_IMAGES = 450
SPLIT_SEED = 0  # every run, whatever its own seed, is tested on the same images


class Dataset(NamedTuple):
    """Images with their classes.

    Attributes:
      images: float32 of shape (count, height, width, channels).
      labels: int32 of shape (count,).
    """

    images: np.ndarray
    labels: np.ndarray


class Batch(NamedTuple):
    """Rows of a data set, and which of them are real.

    Attributes:
      images: float32 of shape (rows, height, width, channels).
      labels: int32 of shape (rows,).
      weights: float32 of shape (rows,): 1 for a real row, 0 for padding.
    """

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def load_digits(limit: int | None = None) -> tuple[Dataset, Dataset]:
    """Load the 1797 images of handwritten digits, 8 by 8 pixels, as (train, test).

    The split is stratified and always the same. Pixels are standardized with the mean
    and the standard deviation of the training images.

    Args:
      limit: keep only the first `limit` images of each part; None keeps all of them.
    """
    pixels, labels = load_bundled_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.float32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images,
        labels.astype(np.int32),
        test_size=TEST_IMAGES,
        random_state=SPLIT_SEED,
        stratify=labels,
    )
    center, spread = train_images.mean(), train_images.std()
    train = Dataset((train_images - center) / spread, train_labels)
    test = Dataset((test_images - center) / spread, test_labels)
    return tuple(Dataset(*(part[:limit] for part in data)) for data in (train, test))


def round_up(count: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `count`."""
    return -(-count // multiple) * multiple


def pad_batch(images: np.ndarray, labels: np.ndarray, rows: int) -> Batch:
    """Append zeros until there are `rows` rows; what is appended has weight 0."""
    missing = rows - len(labels)
    if missing < 0:
        raise ValueError(f"cannot pad {len(labels)} rows to {rows}, which is fewer")

    def pad(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))

    return Batch(pad(images), pad(labels), pad(np.ones(len(labels), np.float32)))


def num_batches(data: Dataset, batch_size: int) -> int:
    """Return how many batches `batches` makes: the last one may be partly padding."""
    return -(-len(data.labels) // batch_size)


def batches(
    data: Dataset,
    batch_size: int,
    *,
    multiple: int = 1,
    shuffle: np.random.Generator | None = None,
) -> Iterator[Batch]:
    """Cut `data` into batches of one shape, so that one compilation serves them all.

    Nothing is dropped and nothing counts twice: where the last rows do not fill a
    batch, or a batch does not divide by `multiple`, rows of weight 0 make up for it.

    Args:
      data: the rows to cut up.
      batch_size: real rows in a batch; the last batch may hold fewer.
      multiple: the number of rows is rounded up to a multiple of this, such as the
        number of devices that share a batch.
      shuffle: draws a new order of the rows; None keeps the order they have.
    """
    rows = round_up(batch_size, multiple)
    order = np.arange(len(data.labels))
    if shuffle is not None:
        shuffle.shuffle(order)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield pad_batch(data.images[chosen], data.labels[chosen], rows)
