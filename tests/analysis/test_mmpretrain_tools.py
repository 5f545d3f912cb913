from inspect import signature

import numpy as np
import pytest
from conftest import CONFIGS, GOLDEN
from PIL import Image

from vcmamba_mm.inference import get_inferencer

mmpretrain = pytest.importorskip('mmpretrain')
TSNE = pytest.importorskip('sklearn.manifold').TSNE

CONFIG = CONFIGS / 'tiny_classifier.py'
RELEASE = GOLDEN / 'tiny_release.pth'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Ten classes of coloured noise in ImageNet's layout, two of each."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    lines = []
    for label in range(10):
        (root / f'val/{label}').mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 100, (40, 48, 3)) + 15 * label
            path = root / f'val/{label}/{i}.png'
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            lines.append(f'{label}/{i}.png {label}')
    (root / 'meta').mkdir()
    (root / 'meta/val.txt').write_text('\n'.join(lines))
    return root


@pytest.fixture
def draw(run_here, pictures, tmp_path):
    def draw(command, *options, checkpoint=RELEASE):
        out = tmp_path / 'new' / f'{command}.png'
        data = f'test_dataloader.dataset.data_root={pictures}'
        tool = 'analysis/mmpretrain_tools.py'
        arguments = [CONFIG, checkpoint, '--out', out, *options]
        printed = run_here(tool, command, *arguments, '--cfg-options', data)
        return printed, out

    return draw


def test_confusion_matrix(draw, pictures):
    printed, out = draw('confusion-matrix', '--include-values')
    inferencer = get_inferencer(CONFIG, RELEASE, 'cpu')
    paths = sorted(pictures.glob('val/*/*'))
    right = sum(
        int(path.parent.name) == result['pred_label']
        for path, result in zip(paths, inferencer([str(p) for p in paths]))
    )
    assert f'{right / 20:.1%} of 20 images are classified right' in printed
    assert Image.open(out).size[0] > 1000


@pytest.mark.skipif(
    mmpretrain.__version__ < '1.2.1'
    and 'n_iter' not in signature(TSNE).parameters,
    reason="mmpretrain 1.2.0's tool needs scikit-learn < 1.7",
)
def test_tsne(draw):
    printed, out = draw('tsne', '--perplexity', 3, '--n-iter', 250)
    assert 'Each point is an image' in printed
    assert Image.open(out).size[0] > 1000
    assert [path.name for path in out.parent.iterdir()] == ['tsne.png']


def test_errors(draw):
    printed, _ = draw('tsne', checkpoint='none.pth')
    assert 'error: checkpoint none.pth does not exist' in printed
