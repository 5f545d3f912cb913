"""Which files are pictures, and what is said of the others."""

import logging
import posixpath
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mmengine.logging import print_log

# What OpenCV and Pillow read on all stacks; case does not matter.
PICTURES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp'),
    *('.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm'),
)


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder on the way to it, begins with a dot."""
    parts = path.split('/')
    return any(p.startswith('.') and p not in ('.', '..') for p in parts)


def is_picture(path: str, endings: tuple[str, ...] = PICTURES) -> bool:
    """Whether a file is a picture by its ending, and is not hidden."""
    return path.lower().endswith(endings) and not is_hidden(path)


def name_left_out(folder: str, paths: Iterable[str], why: str) -> None:
    """Say in one line which files of a folder are not used.

    Args:
        folder: Its name.
        paths: What is left out. Of hidden files nothing is said.
        why: What would not be left out.
    """
    others = Counter(
        posixpath.splitext(path)[1] or 'without an ending'
        for path in paths
        if not is_hidden(path)
    )
    if others:
        kinds = ', '.join(f'{n} {its}' for its, n in others.most_common(8))
        print_log(
            f'{folder}: {others.total()} files are left out ({kinds}): {why}',
            'current',
            logging.WARNING,
        )


def pictures_below(folder: Path, without: Path | None = None) -> list[Path]:
    """List all pictures, and say in one line which files are none.

    Args:
        folder: Looked through at any depth.
        without: A folder in it that is not looked at.
    """
    files = sorted(file for file in folder.rglob('*') if file.is_file())
    if without and without.resolve() != folder.resolve():
        within = without.resolve()
        files = [f for f in files if within not in f.resolve().parents]
    names = {file: file.relative_to(folder).as_posix() for file in files}
    left_out = [name for name in names.values() if not is_picture(name)]
    why = f'pictures end in {" ".join(PICTURES)}'
    name_left_out(str(folder), left_out, why)
    return [file for file, name in names.items() if is_picture(name)]
