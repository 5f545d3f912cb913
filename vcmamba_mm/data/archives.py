"""Data sets in one piece: tar shards and LMDB in place of a million files.

What is inside is named by paths that begin with the archive's: an image may
be ``tar://data/imagenet_tar/train/n01440764/n01440764_10026.JPEG``. Two
storage backends of MMEngine read such paths, so with
``data_root='tar://data/imagenet_tar'`` every data set that reads through
MMEngine finds its folders, annotations and images there, in any order.

``tar://`` is a folder with uncompressed tar files, of whatever origin
(WebDataset's among them), and an index. ``lmdb://`` is an LMDB whose keys are
the paths; MMEngine's own ``LmdbBackend`` reads it too.
"""

import io
import json
import os
import posixpath
import tarfile
import tokenize
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from mmengine.fileio import BaseStorageBackend, register_backend

from ..files import whole_folder, write_file

_INDEX, _SHARDS = 'index.npy', 'shards.json'
_FORMAT = 1

# What is raised while one reads JSON and arrays of damaged bytes.
_INDEX_ERRORS = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


class ArchiveError(OSError):
    """An archive that is damaged, or not as its index says."""


class TarArchive:
    """A folder of tar files with an index of what is where.

    Nothing is read but what is asked for: the index is mapped into memory,
    one copy for all processes, and each file read with one call.

    Args:
        root: The folder, see ``index_tar``.

    Raises:
        ArchiveError: If the index is not that of the tar files.
    """

    marker = _INDEX

    def __init__(self, root: str) -> None:
        self._root = Path(root)
        with self._index_errors():
            described = json.loads((self._root / _SHARDS).read_text())
            format, self._sizes = described['format'], described['sizes']
            num_files, checksum = described['files'], described.get('crc32')
        if format != _FORMAT:
            raise ArchiveError(
                f'{root} has another format ({format}) than this '
                f'version reads ({_FORMAT}): index it again'
            )
        for name, size in self._sizes.items():
            path = self._root / name
            if not path.is_file() or path.stat().st_size != size:
                raise ArchiveError(
                    f'{path} is gone or has changed since {root} was indexed: '
                    'restore it, or index the folder again with '
                    f'tools/make_shards.py {root}'
                )
        self._shards = list(self._sizes)
        with self._index_errors():
            mapped = np.memmap(self._root / _INDEX, np.uint8, 'r')
            if checksum not in (None, zlib.crc32(mapped)):
                raise ValueError('not as it was written')
            index = np.load(self._root / _INDEX, mmap_mode='r')
            # As an array, whose items are read faster than those of a memmap
            self._index = np.asarray(index)
            self._names = self._index['name']
        if len(self._index) != num_files:
            raise ArchiveError(
                f'{root} has an index of something else: index it again with '
                f'tools/make_shards.py {root}'
            )
        self._files: dict[int, int] = {}

    @contextmanager
    def _index_errors(self) -> Iterator[None]:
        """Have one error for what a damaged index leads to."""
        try:
            yield
        except _INDEX_ERRORS as error:
            raise ArchiveError(
                f'the index of {self._root} is damaged ({error}): index it '
                f'again with tools/make_shards.py {self._root}'
            ) from error

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if it is not there."""
        key = name.encode()
        row = bisect_left(self._names, key)
        if row == len(self._names) or self._names[row] != key:
            return None
        with self._index_errors():
            _, shard, offset, size = self._index[row].item()
            path = self._root / self._shards[shard]
            if offset + size > self._sizes[path.name]:
                raise ValueError(f'{name} would be outside of {path.name}')
        if shard not in self._files:
            self._files[shard] = os.open(path, os.O_RDONLY)
        # Takes no position with it, which processes that fork would share.
        content = os.pread(self._files[shard], size, offset)
        if len(content) != size:
            raise ArchiveError(f'{path} is cut off')
        return content

    def names(self, begin: str) -> Iterator[str]:
        """All names from ``begin`` on, in the order of their bytes."""
        with self._index_errors():
            row = bisect_left(self._names, begin.encode())
            for name in self._names[row:]:
                yield name.decode()


class LmdbArchive:
    """An LMDB whose keys are paths.

    Args:
        root: The folder of the LMDB.

    Raises:
        ImportError: If the package lmdb is not installed.
        ArchiveError: If it is damaged, while it is read.
    """

    marker = 'data.mdb'

    def __init__(self, root: str) -> None:
        self._lmdb = _import_lmdb()
        self._root = root
        self._process = None

    @property
    def _environment(self):
        # One that was open before a process forked must not be used after.
        if self._process != os.getpid():
            if self._process is not None:
                self._opened.close()
            self._opened = self._lmdb.open(
                self._root, readonly=True, lock=False, readahead=False
            )
            self._process = os.getpid()
            num_pages = self._opened.info()['last_pgno'] + 1
            there = os.path.getsize(os.path.join(self._root, self.marker))
            # Reading what is not there would end the process by a signal.
            if there < num_pages * self._opened.stat()['psize']:
                self._process = None
                self._opened.close()
                raise ArchiveError(f'{self._root} is cut off: make it again')
        return self._opened

    @contextmanager
    def _transaction(self) -> Iterator:
        """Begin to read, and have one error for what damage leads to."""
        try:
            with self._environment.begin() as transaction:
                yield transaction
        except (self._lmdb.Error, UnicodeDecodeError) as error:
            raise ArchiveError(
                f'{self._root} is damaged ({error}): make it again'
            ) from error

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if it is not there."""
        if not name:
            return None
        with self._transaction() as transaction:
            return transaction.get(name.encode())

    def names(self, begin: str) -> Iterator[str]:
        """All names from ``begin`` on, in the order of their bytes."""
        with self._transaction() as transaction:
            cursor = transaction.cursor()
            if begin and not cursor.set_range(begin.encode()):
                return
            for key in cursor.iternext(values=False):
                yield key.decode()


def _import_lmdb():
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            'LMDB needs the package lmdb: pip install lmdb'
        ) from error
    return lmdb


class _ArchiveBackend(BaseStorageBackend):
    """MMEngine's reading functions for paths into archives."""

    kind: type
    prefix: str
    _opened: dict[str, TarArchive | LmdbArchive]

    def _find(self, path: str | Path) -> tuple[TarArchive | LmdbArchive, str]:
        """Open the archive that a path leads into.

        Raises:
            FileNotFoundError: If there is none on the way.
        """
        path = posixpath.normpath(str(path).split('://')[-1])
        for root, archive in self._opened.items():
            if path == root or path.startswith(root + '/'):
                return archive, path[len(root) + 1 :]
        root = path
        while root not in ('', '/'):
            if os.path.isfile(os.path.join(root, self.kind.marker)):
                self._opened[root] = self.kind(root)
                return self._opened[root], path[len(root) + 1 :]
            root = posixpath.dirname(root)
        raise FileNotFoundError(
            f'{self.prefix}://{path}: no archive there (a folder with '
            f'{self.kind.marker}); tools/make_shards.py makes one'
        )

    def get(self, filepath: str | Path) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: If it, or the archive, is not there.
            ArchiveError: If the archive is damaged.
        """
        archive, name = self._find(filepath)
        content = archive.read(name)
        if content is None:
            raise FileNotFoundError(f'{filepath} is not in the archive')
        return content

    def get_text(self, filepath: str | Path, encoding: str = 'utf-8') -> str:
        return self.get(filepath).decode(encoding)

    def isfile(self, filepath: str | Path) -> bool:
        try:
            archive, name = self._find(filepath)
        except FileNotFoundError:
            return False
        return next(archive.names(name), None) == name

    def isdir(self, filepath: str | Path) -> bool:
        try:
            archive, name = self._find(filepath)
        except FileNotFoundError:
            return False
        begin = name + '/' if name else ''
        return next(archive.names(begin), '').startswith(begin)

    def exists(self, filepath: str | Path) -> bool:
        return self.isfile(filepath) or self.isdir(filepath)

    def join_path(self, filepath: str | Path, *filepaths: str | Path) -> str:
        return posixpath.join(str(filepath), *map(str, filepaths))

    def list_dir_or_file(
        self,
        dir_path: str | Path,
        list_dir: bool = True,
        list_file: bool = True,
        suffix: str | tuple[str, ...] | None = None,
        recursive: bool = False,
    ) -> Iterator[str]:
        """List a folder; see ``mmengine.fileio.list_dir_or_file``."""
        archive, name = self._find(dir_path)
        begin = name + '/' if name else ''
        folders = set()
        names = archive.names(begin)
        while (path := next(names, None)) is not None:
            if not path.startswith(begin):
                break
            path = path[len(begin) :]
            *parts, file = path.split('/')
            for depth in range(1, len(parts) + 1 if recursive else 2):
                folder = '/'.join(parts[:depth])
                if folder and folder not in folders:
                    folders.add(folder)
                    if list_dir:
                        yield folder
            if parts and not recursive:
                # On to what follows the folder: '0' comes after '/'.
                names = archive.names(f'{begin}{parts[0]}0')
            elif (
                list_file
                and not file.startswith('.')
                and path.endswith(suffix or '')
            ):
                yield path


@register_backend('tar', prefixes='tar')
class TarBackend(_ArchiveBackend):
    """Paths into tar shards, ``tar://FOLDER/PATH``."""

    kind, prefix = TarArchive, 'tar'
    _opened = {}


@register_backend('lmdb_paths', prefixes='lmdb')
class LmdbPathBackend(_ArchiveBackend):
    """Paths into an LMDB, ``lmdb://FOLDER/PATH``."""

    kind, prefix = LmdbArchive, 'lmdb'
    _opened = {}


def find_files(source: str | os.PathLike) -> list[str]:
    """List the files below a folder, hidden ones aside, in order.

    Returns:
        list[str]: Paths relative to it, with '/'.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing in it.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f'folder {source} does not exist')
    files = sorted(
        (Path(folder) / name).relative_to(source).as_posix()
        for folder, _, names in os.walk(source, followlinks=True)
        for name in names
        if not name.startswith('.')
    )
    if not files:
        raise FileNotFoundError(f'folder {source} is empty')
    return files


def _check_end(path: Path, end: int) -> None:
    """A damaged header, too, ends a tar file, with no word."""
    with open(path, 'rb') as file:
        file.seek(end)
        for chunk in iter(lambda: file.read(2**20), b''):
            if chunk.strip(b'\0'):
                raise ArchiveError(
                    f'{path} is damaged at byte {end}, or several tar files '
                    'in one: make it again'
                )


def index_tar(folder: str | os.PathLike) -> int:
    """Index the tar files of a folder, so that ``TarArchive`` opens it.

    Returns:
        int: How many files there are inside.

    Raises:
        FileNotFoundError: If there are no tar files.
        ArchiveError: If one is compressed or damaged, or two files have one
            name.
    """
    folder = Path(folder)
    paths = sorted(folder.glob('*.tar'))
    if not paths:
        raise FileNotFoundError(f'there are no files *.tar in {folder}')
    rows = []
    for shard, path in enumerate(paths):
        try:
            with tarfile.open(path, 'r:') as tar:
                rows += [
                    (
                        posixpath.normpath(member.name).encode(),
                        shard,
                        member.offset_data,
                        member.size,
                    )
                    for member in tar
                    if member.isreg() and not member.issparse()
                ]
                end = tar.offset
        except (tarfile.TarError, OverflowError, ValueError) as error:
            raise ArchiveError(
                f'{path} is compressed, damaged or no tar file ({error}): '
                'shards must be uncompressed'
            ) from error
        _check_end(path, end)
    rows.sort()
    for (name, first, *_), (other, second, *_) in pairwise(rows):
        if name == other:
            raise ArchiveError(
                f'{name.decode()} is in {paths[first]} and in '
                f'{paths[second]}: names must differ'
            )
    width = max((len(name) for name, *_ in rows), default=1)
    dtype = [('name', f'S{width}'), ('shard', 'u4'), ('offset', 'u8')]
    index = np.array(rows, [*dtype, ('size', 'u8')])
    content = io.BytesIO()
    np.save(content, index)
    write_file(content.getvalue(), folder / _INDEX)
    sizes = {path.name: path.stat().st_size for path in paths}
    described = dict(
        format=_FORMAT,
        files=len(rows),
        sizes=sizes,
        crc32=zlib.crc32(content.getvalue()),
    )
    write_file(json.dumps(described, indent=1).encode(), folder / _SHARDS)
    return len(rows)


def write_tar(
    files: Iterable[tuple[str, bytes]],
    target: str | os.PathLike,
    shard_bytes: int = 10**9,
) -> None:
    """Write tar shards with an index, all or nothing.

    Args:
        files: Path inside, and content, of each file.
        target: Folder to be made.
        shard_bytes: After so many bytes another shard begins.

    Raises:
        FileExistsError: If the target is there already.
    """
    with whole_folder(target) as folder, ExitStack() as opened:
        shards, written = 0, shard_bytes
        for name, content in files:
            if written >= shard_bytes:
                opened.close()
                path = folder / f'{shards:06}.tar'
                tar = opened.enter_context(tarfile.open(path, 'w'))
                shards, written = shards + 1, 0
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            written += len(content)
        opened.close()
        index_tar(folder)


def write_lmdb(
    files: Iterable[tuple[str, bytes]], target: str | os.PathLike
) -> None:
    """Write an LMDB whose keys are the paths, all or nothing.

    Args:
        files: Path inside, and content, of each file.
        target: Folder to be made.

    Raises:
        FileExistsError: If the target is there already.
        ImportError: If the package lmdb is not installed.
    """
    lmdb = _import_lmdb()
    with (
        whole_folder(target) as folder,
        # The size is the most that it may become; the file grows as needed.
        lmdb.open(str(folder), map_size=2**42) as environment,
    ):
        for chunk in iter(lambda: list(islice(files, 1000)), []):
            with environment.begin(write=True) as transaction:
                for name, content in chunk:
                    transaction.put(name.encode(), content)
    (Path(target) / 'lock.mdb').unlink(missing_ok=True)  # readers need none
