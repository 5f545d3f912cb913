"""mmpretrain's own tools, with names for configs and checkpoints read safely.

tsne              t-SNE of the features of the test data, with scikit-learn
confusion-matrix  which classes of the test data are taken for which

Further arguments are passed on: --max-num-class 10 --legend, or
--include-values, or --cfg-options test_dataloader.dataset.data_root=DIR.
"""

import argparse
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib import rc_context
from mmengine.fileio import load

from vcmamba_mm.files import write_file
from vcmamba_mm.inference import get_model
from vcmamba_mm.model_zoo import load_config
from vcmamba_mm.training.command_line import (
    add_weights_argument,
    one_line_errors,
)
from vcmamba_mm.training.errors import SETUP_ERRORS

SCRIPTS = {
    'tsne': 'visualization/vis_tsne.py',
    'confusion-matrix': 'analysis_tools/confusion_matrix.py',
}


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --max... is mmpretrain's
    )
    parser.add_argument('command', choices=SCRIPTS)
    parser.add_argument('config', help='config file, or name of a model')
    parser.add_argument('checkpoint', help='ours or a released one')
    add_weights_argument(parser)
    parser.add_argument('--out', required=True, help='PNG file to write')
    return parser.parse_known_args()


def find_script(command: str) -> Path:
    """Where mmpretrain keeps it: in its wheel or its repository."""
    import mmpretrain

    package = Path(mmpretrain.__file__).parent
    for folder in (package / '.mim', package.parent):
        script = folder / 'tools' / SCRIPTS[command]
        if script.is_file():
            return script
    raise FileNotFoundError(
        f'{SCRIPTS[command]} of mmpretrain was not found beside {package}'
    )


def save_for_mmpretrain(args: argparse.Namespace, folder: Path) -> Path:
    """Save the weights as MMEngine does, which reads nothing else."""
    model = get_model(args.config, args.checkpoint, 'cpu', args.weights)
    path = folder / 'weights.pth'
    meta = dict(dataset_meta=dict(model.dataset_meta))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def run(script: Path, *args: str | Path) -> None:
    sys.argv = [script.name, *map(str, args)]
    os.environ.setdefault('MPLBACKEND', 'Agg')
    with rc_context({'savefig.bbox': 'tight', 'savefig.dpi': 150}):
        runpy.run_path(str(script), run_name='__main__')


def tsne(config: str, weights: Path, out: Path, rest: list[str]) -> str:
    folder = weights.parent
    options = ['--checkpoint', weights, '--work-dir', folder, *rest]
    run(find_script('tsne'), config, *options)
    (picture,) = folder.glob('tsne_*/feat_*.png')
    shutil.move(picture, out)
    return (
        'Each point is an image, its colour the class: images that the '
        'features take for similar are neighbours; distances between groups '
        'mean nothing.'
    )


def confusion_matrix(
    config: str, weights: Path, out: Path, rest: list[str]
) -> str:
    matrix_file = weights.parent / 'matrix.pkl'
    options = ['--show-path', out, '--out', matrix_file, *rest]
    run(find_script('confusion-matrix'), config, weights, *options)
    matrix = torch.as_tensor(load(matrix_file))
    right = matrix.diagonal().sum() / matrix.sum()
    wrong = matrix - torch.diag(matrix.diagonal())
    true, predicted = divmod(int(wrong.argmax()), len(matrix))
    return (
        f'{right:.1%} of {int(matrix.sum())} images are classified right; '
        f'the most frequent mistake is {true} taken for {predicted}, '
        f'{int(wrong.max())} times.'
    )


def main() -> None:
    args, rest = parse_args()
    with (
        one_line_errors(*SETUP_ERRORS),
        tempfile.TemporaryDirectory() as folder,
    ):
        config = load_config(args.config).filename
        weights = save_for_mmpretrain(args, Path(folder))
        picture = Path(folder) / 'picture.png'
        command = tsne if args.command == 'tsne' else confusion_matrix
        sentence = command(config, weights, picture, rest)
        write_file(picture.read_bytes(), args.out)
    print(sentence)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
