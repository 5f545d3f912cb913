"""Files and folders that are written wholly or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend


class WriteError(OSError):
    """A file that cannot be written, for one because the disk is full."""


def write_file(content: bytes, path: str | os.PathLike) -> None:
    """Write under a temporary name, then rename: all of it or nothing.

    Raises:
        WriteError: If the file cannot be written. What was there under that
            name still is.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, 'wb') as file:
                file.write(content)
                file.flush()
                # On the disk before it has the name, and so after a power cut.
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        message = (
            f'{path} cannot be written ({error.strerror or error}, '
            f'{len(content) / 1e6:.1f} MB): what was there before is as it was'
        )
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message += '. Make room, then go on, training with --resume'
        raise WriteError(message) from error


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove what a killed ``write_file`` left behind in a folder."""
    for temporary in Path(folder).glob('.*.[0-9]*.tmp'):
        temporary.unlink(missing_ok=True)


@register_backend('atomic')
class AtomicLocalBackend(LocalBackend):
    """MMEngine's local files, each written by ``write_file``."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_file(obj, filepath)

    def put_text(
        self, obj: str, filepath: str | Path, encoding: str = 'utf-8'
    ) -> None:
        write_file(obj.encode(encoding), filepath)


@contextmanager
def whole_folder(target: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder that becomes ``target`` if all goes well.

    Raises:
        FileExistsError: If the target is there already.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(
            f'{target} is there already: remove it, or name another place'
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f'.{target.name}-', dir=target.parent
    ) as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        folder.rename(target)
