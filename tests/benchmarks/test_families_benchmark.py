"""Small backbones learn side by side."""

import json
import shutil
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip('sklearn')
pytest.importorskip('mmseg')
import families
import families_report
import small_segmentation
import small_training
from sklearn.metrics import jaccard_score

from vcmamba_mm.demo.data import write_dataset

LABELS = 12  # with void


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp('digits') / 'data'
    write_dataset(root, counts=dict(classification=dict(train=80, val=40)))
    return root


@pytest.fixture(scope='module')
def camvid(tmp_path_factory):
    """Pictures whose red channel is 20 times the label of 3 x 3 pixels."""
    root = tmp_path_factory.mktemp('camvid')
    rng = np.random.default_rng(0)
    for split, number in (('train', 3), ('val', 2)):
        for i in range(number):
            label = rng.integers(LABELS, size=(120, 160), dtype=np.uint8)
            label = label.repeat(3, 0).repeat(3, 1)
            picture = np.stack([20 * label, label, 255 - label], 2)
            for kind, pixels in (('images', picture), ('annotations', label)):
                folder = root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f'{i}.png')
    return root


def compare(digits, camvid, out, *more):
    argv = ['--digits', digits, '--camvid', camvid, '--seeds', 0, 1]
    argv += ['--epochs', 1, '--size', 32, '--out', out, *more]
    families.main([str(word) for word in argv])
    return json.loads((out / 'families.json').read_text())['runs']


def test_run(digits, camvid, tmp_path, monkeypatch):
    """In parts: what is there stays, and what is missing is trained."""
    names = ('VCMamba', 'PlainMamba')
    for name in set(families.FAMILIES) - set(names):
        monkeypatch.delitem(families.FAMILIES, name)
    first = compare(digits, camvid, tmp_path, '--runs', 1)
    runs = compare(digits, camvid, tmp_path)
    assert runs[:1] == first
    assert len(runs) == 2 * 2 * 2  # data sets, seeds, families
    assert len({(r['data'], r['seed'], r['model']) for r in runs}) == len(runs)
    for run in runs:
        # after two steps close to what chance gives, and not below it
        assert 1.5 < run['loss'][0] < 5 and len(run['loss']) == 1
        ((epoch, score),) = run['scores']
        assert epoch == 1 and 0 <= score <= 100

    text = (tmp_path / 'families.md').read_text()
    assert '## CamVid' in text and '## CIFAR-10' not in text
    for name, its in families_report.group(runs, 'model').items():
        mean = statistics.mean(
            run['scores'][0][1] for run in its if run['data'] == 'CamVid'
        )
        assert f'| {name} | {its[0]["params"]:,} |' in text
        assert f'| {mean:.1f} \u00b1 ' in text
    assert (tmp_path / 'families.png').read_bytes()[:4] == b'\x89PNG'

    # With other settings nothing that is there counts, or gets lost.
    more = compare(digits, camvid, tmp_path, '--epochs', 2, '--runs', 1)
    assert more[:-1] == runs and more[-1]['settings']['epochs'] == 2


@pytest.mark.parametrize('data, classes', [('CIFAR-10', 10), ('CamVid', 11)])
def test_equal_in_parameters(data, classes):
    size = small_segmentation.CROP if data == 'CamVid' else 64
    task = SimpleNamespace(size=size, num_classes=classes)
    sizes = []
    for name in families.FAMILIES:
        model = families.build(name, data, task).eval()
        x = torch.zeros(1, 3, *small_segmentation.CROP)
        shape = (1, 11, 96, 128) if data == 'CamVid' else (1, 10)
        assert model(x).shape == shape
        sizes.append(sum(p.numel() for p in model.backbone.parameters()))
    assert max(sizes) < 1.02 * min(sizes)


def test_the_same_batches_alone_and_beside_others(digits):
    data, _ = small_training.load_data(digits / 'classification', 64, 'val')
    task = small_training.Classification(data, 8)

    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))

    alone = small_training.train(task, dict(a=model), 3, seed=1)
    beside = small_training.train(task, dict(b=model, a=model), 3, seed=1)
    for key in ('loss', 'scores'):
        assert alone['a'][key] == beside['a'][key] == beside['b'][key]
    assert [epoch for epoch, _ in alone['a']['scores']] == [1, 2, 3]
    other = small_training.train(task, dict(a=model), 3, seed=2)
    assert other['a']['loss'] != alone['a']['loss']


def test_runs_of_other_data_are_not_taken(digits, camvid, tmp_path, capsys):
    compare(digits, camvid, tmp_path / 'out', '--runs', 1)
    write_dataset(
        tmp_path / 'more', counts=dict(classification=dict(train=90, val=40))
    )
    with pytest.raises(SystemExit):
        compare(tmp_path / 'more', camvid, tmp_path / 'out')
    error = capsys.readouterr().err
    assert 'Digits on photographs with other numbers of images' in error


def test_two_at_once_lose_nothing(digits, camvid, tmp_path, monkeypatch):
    """Another process writes its run while this one trains."""
    theirs = dict(data='CamVid', model='theirs')

    def train(key, task):
        path = tmp_path / 'families.json'
        path.write_text(json.dumps(dict(runs=[theirs])))
        return trained(key, task)

    trained = families.train
    monkeypatch.setattr(families, 'train', train)
    runs = compare(digits, camvid, tmp_path, '--runs', 1)
    assert len(runs) == 2 and runs[0] == theirs


def test_curves():
    def run(name, seed, loss, scores):
        return dict(
            data='digits',
            model=name,
            seed=seed,
            score_name='top-1',
            settings=dict(epochs=2),
            loss=loss,
            scores=scores,
        )

    figure = families_report.plot(
        [
            run('one', 0, [2.0, 1.0], [(1, 50.0), (2, 70.0)]),
            run('two', 0, [3.0, 1.0], [(1, 20.0), (2, 60.0)]),
            run('two', 1, [5.0, 2.0], [(1, 30.0), (2, 80.0)]),
        ]
    )
    points = [
        [line.get_xydata().tolist() for line in axis.get_lines()]
        for axis in figure.axes
    ]
    assert points[0] == [[[1, 2.0], [2, 1.0]], [[1, 4.0], [2, 1.5]]]
    assert points[1] == [[[1, 50.0], [2, 70.0]], [[1, 25.0], [2, 70.0]]]
    _, area = figure.axes[1].collections
    assert area.get_paths()[0].get_extents().extents.tolist() == [1, 20, 2, 80]


def test_crops_have_their_labels(camvid):
    task = small_segmentation.Segmentation(
        small_segmentation.load_data(camvid)
    )
    chosen = torch.tensor([0, 1, 2] * 4)
    x, y = task.batch(chosen, torch.Generator().manual_seed(0))
    assert x.shape == (12, 3, 96, 128) and y.shape == (12, 96, 128)
    red = (x * task.std + task.mean)[:, 0]
    label = (red / 20).round().long()
    assert (label == LABELS - 1).any()
    void = small_segmentation.VOID
    torch.testing.assert_close(label.where(label < LABELS - 1, void), y)
    _, other = task.batch(chosen, torch.Generator().manual_seed(1))
    assert not torch.equal(other, y)


def test_mean_iou(camvid):
    task = small_segmentation.Segmentation(
        small_segmentation.load_data(camvid)
    )

    class Guess(nn.Module):
        """The label, but of every fifth column class 3."""

        def forward(self, x):
            label = ((x * task.std + task.mean)[:, 0] / 20).round().long()
            label[..., ::5] = 3
            return nn.functional.one_hot(label, LABELS).movedim(-1, 1)[:, :11]

    truth = task.test[1]
    guess = truth.clone()
    guess[..., ::5] = 3
    known = truth != small_segmentation.VOID
    expected = jaccard_score(truth[known], guess[known], average='macro')
    assert task.score(Guess()) == pytest.approx(100 * expected)


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('images/test/0.png', b'', 'not in images or annotations, train or'),
        ('images/val/9.png', b'no PNG', '9.png cannot be read as a picture'),
        ('annotations/val/1.png', None, 'val needs pictures, and an annot'),
    ],
)
def test_wrong_camvid(camvid, tmp_path, name, content, message):
    root = shutil.copytree(camvid, tmp_path / 'data')
    path = root / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        small_segmentation.load_data(root)


def test_wrong_pictures(digits):
    with pytest.raises(ValueError, match='has not 32 x 32 pixels'):
        small_training.load_data(digits / 'classification', 32, 'val')
    with pytest.raises(ValueError, match=r'is not in train/<class> or test/'):
        small_training.load_data(digits / 'classification', 64)


def test_intervals():
    """Of paired differences 1, 2, 3: mean 2, 4.303 * 1 / sqrt(3)."""
    found = small_training.compare([2, 4, 6], [1, 2, 3])
    assert found['values'] == [1, 2, 3] and found['mean'] == 2
    assert found['half_interval_95'] == pytest.approx(4.303 / 3**0.5)
    assert found['verdict'] == 'undecided'
    found = small_training.compare([2.0, 3.1, 4.0], [1, 2, 3])
    assert found['verdict'] == 'wins'
