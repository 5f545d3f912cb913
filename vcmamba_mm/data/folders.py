"""Which files of a folder a data set takes, and what is said of the others."""

import logging
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine import fileio
from mmengine.logging import print_log
from torch.utils.data import Dataset

from .masks import MaskError

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
    """Whether a file is an image by its ending, and is not hidden."""
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
    """List all images, and say in one line which files are none.

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
    why = f'images end in {" ".join(PICTURES)}'
    name_left_out(str(folder), left_out, why)
    return [file for file, name in names.items() if is_picture(name)]


def parts_of(dataset: Dataset) -> Iterator[Dataset]:
    """The data sets that one wraps, at any depth, or itself."""
    inner = getattr(dataset, 'datasets', None)
    if inner is None and hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    if inner is None or hasattr(dataset, 'data_prefix'):
        yield dataset
    else:
        for each in inner:
            yield from parts_of(each)


def _has(dataset: Dataset, method: str, module: str) -> bool:
    """Whether a method is the one of a module."""
    return getattr(getattr(dataset, method, None), '__module__', '') == module


def _files(folder: str, backend_args: dict | None) -> list[str]:
    files = fileio.list_dir_or_file(
        folder, list_dir=False, recursive=True, backend_args=backend_args
    )
    return list(files)


def _compare_class_folders(dataset: Dataset) -> None:
    if dataset.ann_file:
        return
    left_out = [
        path
        for path in _files(dataset.img_prefix, None)
        if not dataset.is_valid_file(path)
        or (dataset.with_label and '/' not in path)
    ]
    endings = ' '.join(sorted(dataset.extensions))
    lie = 'lie in folders of their classes, and ' * dataset.with_label
    why = f'images {lie}end in {endings}'
    name_left_out(dataset.img_prefix, left_out, why)


def _compare_pairs(dataset: Dataset) -> None:
    images = dataset.data_prefix.get('img_path')
    masks = dataset.data_prefix.get('seg_map_path')
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    suffixes = (dataset.img_suffix, dataset.seg_map_suffix)
    if not dataset.ann_file:
        files = _files(images, dataset.backend_args)
        left_out = [path for path in files if not path.endswith(suffixes[0])]
        if masks == images:
            left_out = [p for p in left_out if not p.endswith(suffixes[1])]
        why = f"images end in {suffixes[0]}, the data set's img_suffix"
        name_left_out(images, left_out, why)
    if not masks:
        return
    wanted = {info['seg_map_path']: info['img_path'] for info in infos}
    try:
        files = _files(masks, dataset.backend_args)
    except (FileNotFoundError, NotADirectoryError) as error:
        if dataset.test_mode:
            return
        raise MaskError(
            f'there is no folder of masks {masks}: mend data_prefix.'
            'seg_map_path, or set test_mode=True in a test without masks'
        ) from error
    there = {fileio.join_path(masks, path) for path in files}
    missing = sorted(wanted.keys() - there)
    if missing:
        print_log(
            f'{len(missing)} of {len(infos)} images have no mask, for one '
            f'{wanted[missing[0]]}: {missing[0]} is missing',
            'current',
            logging.WARNING,
        )
    chosen = (
        dataset.ann_file or dataset.filter_cfg or dataset._indices is not None
    )
    lonely = [p for p in there - wanted.keys() if p.endswith(suffixes[1])]
    if lonely and not chosen and masks != images:
        print_log(
            f'{len(lonely)} of {len(there)} masks have no image, for one '
            f'{min(lonely)}',
            'current',
            logging.WARNING,
        )


def compare_folders(dataset: Dataset) -> None:
    """Name images without masks, masks without images, and other files.

    Args:
        dataset: One that finds its files as mmseg's ``BaseSegDataset`` or
            mmpretrain's ``CustomDataset`` does; others are passed over.

    Raises:
        MaskError: If the folder of the masks does not exist, unless the data
            set is in test mode.
    """
    # ClassFolders, which finds them otherwise, has named the others.
    if _has(dataset, '_find_samples', 'mmpretrain.datasets.custom'):
        _compare_class_folders(dataset)
    if _has(dataset, 'load_data_list', 'mmseg.datasets.basesegdataset'):
        _compare_pairs(dataset)
