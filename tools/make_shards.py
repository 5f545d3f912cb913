"""Put a data set into tar shards or an LMDB, or index tar files there are.

A million small files are slow to list and to read from a cluster's disks. The
folders, names and annotations inside stay as they are, so that
--cfg-options train_dataloader.dataset.data_root=tar://TARGET is all that
training needs.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from mmengine.utils import ProgressBar

from vcmamba_mm.data.archives import (
    find_files,
    index_tar,
    write_lmdb,
    write_tar,
)
from vcmamba_mm.data.cropping import decode_jpeg, encode_ppm
from vcmamba_mm.data.decoding import DecodeError
from vcmamba_mm.training.command_line import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('source', type=Path, help='folder of the data set')
    parser.add_argument(
        'target',
        type=Path,
        nargs='?',
        help='folder to be made; without it the tar files in SOURCE, '
        "WebDataset's for one, get the index that reading needs",
    )
    parser.add_argument(
        '--format',
        choices=['tar', 'lmdb'],
        default='tar',
        help='tar is default, lmdb needs the package lmdb',
    )
    parser.add_argument(
        '--shard-size',
        type=int,
        default=1000,
        metavar='MB',
        help='size of a tar shard; by default %(default)s',
    )
    parser.add_argument(
        '--decode',
        action='store_true',
        help='store JPEGs decoded, as PPM under the same name: training need '
        'not decode, for about five times the space; those with an Exif '
        'orientation stay as they are',
    )
    args = parser.parse_args()
    if args.shard_size < 1:
        parser.error('--shard-size must be positive')
    if args.target is None and args.decode:
        parser.error('--decode needs a TARGET')
    return args


def contents(
    source: Path, names: list[str], decode: bool
) -> Iterator[tuple[str, bytes]]:
    bar = ProgressBar(len(names))
    for name in names:
        content = (source / name).read_bytes()
        if decode:
            try:
                image = decode_jpeg(content)
            except DecodeError as error:
                print(f'\n{source / name}: {error}; stored as it is')
            else:
                content = content if image is None else encode_ppm(image)
        yield name, content
        bar.update()
    print()


def main() -> None:
    args = parse_args()
    with one_line_errors(OSError, ImportError):
        if args.target is None:
            print(f'{index_tar(args.source)} files indexed')
            return
        names = find_files(args.source)
        files = contents(args.source, names, args.decode)
        if args.format == 'tar':
            write_tar(files, args.target, args.shard_size * 10**6)
        else:
            write_lmdb(files, args.target)
        print(
            f'{len(names)} files in {args.target}: read it with '
            f'data_root={args.format}://{args.target}'
        )


if __name__ == '__main__':
    main()
