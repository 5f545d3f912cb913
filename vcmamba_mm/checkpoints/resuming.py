"""Finding the checkpoint that a run goes on from."""

import os
from pathlib import Path

from mmengine.logging import print_log

from .reading import CheckpointError, read_checkpoint


def check_resumable(checkpoint: dict, path: str | os.PathLike) -> None:
    """Refuse a checkpoint that holds no training, only weights.

    Raises:
        CheckpointError: Then.
    """
    if not {'optimizer', 'meta', 'message_hub'} <= checkpoint.keys():
        raise CheckpointError(
            f'checkpoint {path} holds weights only, no training to '
            'resume: start from it with --cfg-options load_from=FILE'
        )


def find_resumable(
    work_dir: str | os.PathLike, begun_with: str | None = None
) -> tuple[str, dict] | None:
    """Find the newest checkpoint of a work dir that can be gone on from.

    It is the one that ``last_checkpoint`` names; if that is damaged or gone,
    the furthest of those beside it. One line is logged for each that fails.

    Args:
        work_dir: Where to look.
        begun_with: Only checkpoints of runs that were begun with this one.

    Returns:
        tuple[str, dict] | None: Path and 'meta' of the checkpoint, None if
        there is none.

    Raises:
        CheckpointError: If there are checkpoints, but none is good.
    """
    pointer = Path(work_dir) / 'last_checkpoint'
    named = pointer.read_text().strip() if pointer.is_file() else ''
    folders = {os.path.abspath(work_dir), os.path.dirname(named) or work_dir}
    others = {
        str(path)
        for folder in folders
        for pattern in ('epoch_*.pth', 'iter_*.pth')
        for path in Path(folder).glob(pattern)
    } - {named}
    good = []
    for path in [named, *sorted(others)] if named else sorted(others):
        try:
            checkpoint = read_checkpoint(path)
            check_resumable(checkpoint, path)
        except (CheckpointError, FileNotFoundError) as error:
            print_log(f'{error}. Looking for another one.')
            continue
        if begun_with not in (None, checkpoint['meta'].get('begun_with')):
            continue
        good.append((path, checkpoint['meta']))
        if path == named:
            break
    if not good and begun_with is None and (named or others):
        raise CheckpointError(
            f'no checkpoint in {work_dir} can be resumed from (see above): '
            'name a good one with --resume FILE, or remove them to start anew'
        )
    return max(good, key=lambda item: item[1]['iter']) if good else None
