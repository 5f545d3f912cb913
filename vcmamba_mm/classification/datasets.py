"""Data sets for classification that mmpretrain does not have."""

import posixpath

from mmengine.fileio import get_file_backend
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS


@DATASETS.register_module()
class WebDataset(BaseDataset):
    """Pictures in the layout of the library WebDataset.

    Beside every picture ``KEY.jpg`` is a text ``KEY.cls`` with the number of
    its class; other files are left alone. The pictures are read in any order,
    as from every other data set.

    Args:
        data_root: Where the shards are, ``tar://FOLDER``, indexed by
            ``tools/make_shards.py FOLDER``.
        data_prefix: Only what is below this path inside.
        extensions: Endings of pictures.
        **kwargs: See mmpretrain's ``BaseDataset``; ``classes`` gives names to
            the numbers.
    """

    def __init__(
        self,
        data_root: str,
        data_prefix: str = '',
        extensions: tuple[str, ...] = ('.jpg', '.jpeg', '.png', '.webp'),
        **kwargs,
    ) -> None:
        self.extensions = tuple(extensions)
        super().__init__(
            '', data_root=data_root, data_prefix=data_prefix, **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Pair pictures with classes.

        Raises:
            ValueError: If there are no pictures, or one has no class.
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
                classes[key] = int(backend.get_text(path))
            elif (dot + extension).lower() in self.extensions:
                pictures[key] = path
        without = sorted(pictures.keys() - classes.keys())
        if not pictures or without:
            raise ValueError(
                f'{self.img_prefix} has {len(pictures)} pictures, '
                f'{len(without)} of them without a class in KEY.cls '
                f'{without[:1]}'
            )
        return [
            dict(img_path=path, gt_label=classes[key])
            for key, path in pictures.items()
        ]
