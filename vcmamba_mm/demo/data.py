"""Digits on photos: the built-in data set.

Real handwritten digits (scikit-learn's ``load_digits``), enlarged, distorted
and coloured, on crops of real photographs (``load_sample_images``). Training
and validation share no digit and no part of a photograph.
"""

import colorsys
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ('background', *(str(i) for i in range(10)))
# Of the annotations' pixel values 0 to 10.
PALETTE = (
    (0, 0, 0),
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
)
# Pixels; a digit's side is that of its 8 x 8 grid.
CLASSIFICATION_SIZE, SEGMENTATION_SIZE = 64, 96
DIGIT_SIDES = (44, 60)
MAX_DIGITS = 5
NUM_VAL_DIGITS = 397  # of 1797
VAL_WIDTH = 0.3  # of every photograph, on its right
COUNTS = dict(
    classification=dict(train=3200, val=794),
    segmentation=dict(training=1200, validation=200),
)
# Holds the parameters of a data set and shows that it is one of these.
MARKER = 'digits_on_photos.json'
FORMAT = 1  # to be raised when the pictures change


class Source:
    """Digits and photographs for one side of the split.

    Args:
        held_out: Whether it is the validation side.
        seed: Chooses the validation digits.
    """

    def __init__(self, held_out: bool, seed: int = 0):
        # The other commands of the demo do not need it.
        from sklearn.datasets import load_digits, load_sample_images

        data = load_digits()
        order = np.random.default_rng(seed).permutation(len(data.images))
        self.indices = (
            order[:NUM_VAL_DIGITS] if held_out else order[NUM_VAL_DIGITS:]
        )
        ink = data.images[self.indices].astype(np.float32) / 16
        # An empty margin, so that enlarged digits end smoothly: (n, 10, 10).
        self.digits = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
        self.labels = data.target[self.indices]
        self.photos = []
        for photo in load_sample_images().images:
            border = round(photo.shape[1] * (1 - VAL_WIDTH))
            self.photos.append(
                photo[:, border:] if held_out else photo[:, :border]
            )

    def background(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Crop and darken a photograph, (size, size, 3), 0 to 1."""
        photo = self.photos[rng.integers(len(self.photos))]
        side = rng.integers(size, 2 * size)
        top, left = (rng.integers(n - side + 1) for n in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + side, left : left + side])
        crop = np.asarray(crop.resize((size, size), Image.BICUBIC)) / 255
        return crop[:, :: rng.choice((-1, 1))] * rng.uniform(0.25, 0.55)

    def opacity(
        self, index: int, size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Distort and place a digit on a canvas, (size, size), 0 to 1."""
        side = rng.uniform(*DIGIT_SIDES)
        angle = np.deg2rad(rng.uniform(-12, 12))
        rotation = np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        shear = np.array([[1, rng.uniform(-0.2, 0.2)], [0, 1]])
        stretch = np.diag([rng.uniform(0.9, 1.3), 1])
        # From (x, y) on the canvas to (x, y) in the 8 x 8 digit.
        matrix = 8 / side * rotation @ shear @ stretch
        centre = rng.uniform(0.45 * side, size - 0.45 * side, 2)
        offset = self.digits.shape[1] / 2 - matrix @ centre
        ink = Image.fromarray(self.digits[index]).transform(
            (size, size),
            Image.AFFINE,
            np.column_stack([matrix, offset]).ravel().tolist(),
            Image.BICUBIC,
        )
        return np.clip((np.asarray(ink) - 0.3) / 0.3, 0, 1)

    def picture(
        self, indices: list[int], size: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compose an image; a digit that would hide another is left out.

        Args:
            indices: Of the digits, into ``digits`` and ``labels``.
            size: Height and width in pixels.
            rng: Source of randomness.

        Returns:
            tuple: The image, (size, size, 3), and its annotation, (size,
            size), 0 for background and 1 + label for digits; both uint8.
        """
        picture = self.background(size, rng)
        annotation = np.zeros((size, size), np.uint8)
        for index in indices:
            opacity = self.opacity(index, size, rng)
            colour = colorsys.hsv_to_rgb(
                rng.uniform(), rng.uniform(0, 0.7), rng.uniform(0.8, 1)
            )
            if annotation[opacity > 0].any():
                continue
            picture += opacity[..., None] * (colour - picture)
            annotation[opacity > 0.5] = 1 + self.labels[index]
        return np.round(picture * 255).astype(np.uint8), annotation


def generate(
    task: str, split: str, count: int, seed: int = 0
) -> Iterator[tuple]:
    """Yield the images of one split of one task.

    Args:
        task: 'classification' or 'segmentation'.
        split: One of the task's in ``COUNTS``.
        count: Number of images.
        seed: Of everything random.

    Yields:
        tuple: Image, annotation (see ``Source.picture``) and the label
        of the first digit.
    """
    source = Source(split.startswith('val'), seed)
    for i in range(count):
        # Own stream for every picture.
        rng = np.random.default_rng([seed, *task.encode(), *split.encode(), i])
        first = i % len(source.labels)
        if task == 'classification':
            indices, size = [first], CLASSIFICATION_SIZE
        else:
            others = rng.integers(
                len(source.labels), size=rng.integers(MAX_DIGITS)
            )
            indices, size = [first, *others], SEGMENTATION_SIZE
        yield (*source.picture(indices, size, rng), source.labels[first])


def write_dataset(
    root: str | os.PathLike,
    seed: int = 0,
    counts: dict[str, dict[str, int]] = COUNTS,
) -> bool:
    """Write the data set, all of it or nothing.

    ``classification/{train,val}/<digit>/*.png`` is laid out as ImageNet,
    ``segmentation/{images,annotations}/{training,validation}/*.png`` as
    ADE20K; annotations hold indices into ``CLASSES``.

    Args:
        root: Directory to be made. A data set of this kind with other
            parameters is replaced.
        seed: Same seed, same bytes.
        counts: Number of images by task and split.

    Returns:
        bool: False, and nothing done, if it is already there.

    Raises:
        FileExistsError: If ``root`` holds something else.
    """
    root = Path(root)
    identity = json.dumps(dict(format=FORMAT, seed=seed, counts=counts))
    marker = root / MARKER
    if marker.is_file():
        if marker.read_text() == identity:
            return False
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(
            f'{root} holds something else: choose another directory'
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f'.{root.name}-', dir=root.parent
    ) as temporary:
        new = Path(temporary) / 'new'
        for task, splits in counts.items():
            for split, count in splits.items():
                _write_split(new / task, task, split, count, seed)
        (new / MARKER).write_text(identity)
        if root.exists():
            os.rename(root, Path(temporary) / 'old')
        os.rename(new, root)
    return True


def _write_split(
    path: Path, task: str, split: str, count: int, seed: int
) -> None:
    pictures = generate(task, split, count, seed)
    for i, (picture, annotation, label) in enumerate(pictures):
        name = f'{i:05}.png'
        if task == 'classification':
            _save(Image.fromarray(picture), path / split / str(label) / name)
            continue
        _save(Image.fromarray(picture), path / 'images' / split / name)
        indexed = Image.fromarray(annotation)  # 8 bits, made indexed colour
        indexed.putpalette(np.uint8(PALETTE).tobytes())
        _save(indexed, path / 'annotations' / split / name)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)
