"""Data sets for classification that mmpretrain does not have."""

import logging
import posixpath

from mmengine.fileio import BaseStorageBackend, get_file_backend
from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset, CustomDataset
from mmpretrain.registry import DATASETS

from ..data.folders import PICTURES, is_hidden, is_picture, name_left_out


@DATASETS.register_module()
class ClassFolders(CustomDataset):
    """A folder of images for each class, as mmpretrain's ``CustomDataset``.

    What is left out is named in one line, and hidden folders are no classes.

    Args:
        extensions: Endings of images; case does not matter.
        **kwargs: See mmpretrain's ``CustomDataset``.
    """

    def __init__(
        self, *, extensions: tuple[str, ...] = PICTURES, **kwargs
    ) -> None:
        super().__init__(extensions=extensions, **kwargs)

    def is_valid_file(self, filename: str) -> bool:
        return is_picture(filename, self.extensions)

    def _find_samples(self) -> list:
        """List pairs of image and class, in the order of the classes.

        Raises:
            ValueError: If there are no images, or other folders than
                classes.
        """
        backend = get_file_backend(self.img_prefix, enable_singleton=True)
        endings = ' '.join(self.extensions)
        if not self.with_label:
            samples = super()._find_samples()
            files = backend.list_dir_or_file(
                self.img_prefix, list_dir=False, recursive=True
            )
            left_out = set(files) - set(samples)
            why = f'images end in {endings}'
            name_left_out(self.img_prefix, left_out, why)
            return samples
        folders = backend.list_dir_or_file(self.img_prefix, list_file=False)
        classes = sorted(name for name in folders if not is_hidden(name))
        self.folder_to_idx = {name: i for i, name in enumerate(classes)}
        if self.CLASSES is None:
            self._metainfo['classes'] = tuple(classes)
        elif len(self.CLASSES) != len(classes):
            raise ValueError(
                f'{self.img_prefix} has {len(classes)} folders, the config '
                f'names {len(self.CLASSES)} classes: each needs one'
            )
        samples, left_out = [], []
        for path in backend.list_dir_or_file(
            self.img_prefix, list_dir=False, recursive=True
        ):
            folder, is_inside, name = path.partition('/')
            if is_inside and self.is_valid_file(path):
                samples.append((folder, name))
            else:
                left_out.append(path)
        why = f'images lie in folders of their classes, and end in {endings}'
        if not samples:
            raise ValueError(f'{self.img_prefix} has no images: {why}')
        name_left_out(self.img_prefix, left_out, why)
        empty = set(classes) - {folder for folder, _ in samples}
        if empty:
            print_log(
                f'{self.img_prefix} has no images of '
                f'{", ".join(sorted(empty))}',
                'current',
                logging.WARNING,
            )
        return [
            (posixpath.join(folder, name), self.folder_to_idx[folder])
            for folder, name in sorted(samples)
        ]


@DATASETS.register_module()
class WebDataset(BaseDataset):
    """Images in the layout of the library WebDataset.

    Beside every image ``KEY.jpg`` is a text ``KEY.cls`` with the number of
    its class; other files are left alone. The images are read in any order,
    as from every other data set.

    Args:
        data_root: Where the shards are, ``tar://FOLDER``, indexed by
            ``tools/make_shards.py FOLDER``.
        data_prefix: Only what is below this path inside.
        extensions: Endings of images.
        **kwargs: See mmpretrain's ``BaseDataset``; ``classes`` gives names to
            the numbers.
    """

    def __init__(
        self,
        data_root: str,
        data_prefix: str = '',
        extensions: tuple[str, ...] = PICTURES,
        **kwargs,
    ) -> None:
        self.extensions = tuple(extensions)
        super().__init__(
            '', data_root=data_root, data_prefix=data_prefix, **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Pair images with classes.

        Raises:
            ValueError: If there are no images, or one has no class, or its
                class is no number.
        """
        backend = get_file_backend(self.img_prefix, enable_singleton=True)
        pictures, classes = {}, {}
        names = backend.list_dir_or_file(
            self.img_prefix, list_dir=False, recursive=True
        )
        for name in names:
            # As there, the key ends at the first dot of the file's name.
            folder, file = posixpath.split(name)
            key, dot, extension = file.partition('.')
            key = posixpath.join(folder, key)
            path = backend.join_path(self.img_prefix, name)
            if extension == 'cls':
                classes[key] = _read_number(path, backend)
            elif (dot + extension).lower() in self.extensions:
                pictures[key] = path
        lonely = [f'{key}.cls' for key in classes.keys() - pictures.keys()]
        endings = ' '.join(self.extensions)
        why = f'no image is beside them, which would end in {endings}'
        name_left_out(self.img_prefix, lonely, why)
        without = sorted(pictures.keys() - classes.keys())
        if not pictures or without:
            raise ValueError(
                f'{self.img_prefix} has {len(pictures)} images, '
                f'{len(without)} of them without a class in KEY.cls '
                f'{without[:1]}'
            )
        return [
            dict(img_path=path, gt_label=classes[key])
            for key, path in pictures.items()
        ]


def _read_number(path: str, backend: BaseStorageBackend) -> int:
    text = backend.get(path)
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f'{path} holds {text[:40]!r}, which is no number of a class'
        ) from error
