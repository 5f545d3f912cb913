"""The built-in data set and the report of the quick start."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from vcmamba_mm.demo import CLASSES, write_dataset
from vcmamba_mm.demo.__main__ import main
from vcmamba_mm.demo.data import Source, generate
from vcmamba_mm.demo.report import confusion_matrix, iou_per_class

COUNTS = dict(
    classification=dict(train=12, val=6),
    segmentation=dict(training=5, validation=3),
)
FAMILIES = dict(
    vcmamba='VCMamba',
    vmamba='VMamba',
    mambavision='MambaVision',
    plainmamba='PlainMamba',
)


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob('*')
        if path.is_file()
    }


@pytest.fixture(scope='module')
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'demo'
    assert write_dataset(root, counts=COUNTS)
    return root


def test_same_seed_same_bytes(dataset, tmp_path):
    assert write_dataset(tmp_path / 'again', counts=COUNTS)
    assert contents(tmp_path / 'again') == contents(dataset)
    assert write_dataset(tmp_path / 'again', seed=1, counts=COUNTS)
    assert contents(tmp_path / 'again') != contents(dataset)
    assert [path.name for path in tmp_path.iterdir()] == ['again']


def test_what_is_there_is_kept(dataset, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob('*')}
    assert not write_dataset(dataset, counts=COUNTS)
    assert before == {p: p.stat().st_mtime_ns for p in dataset.rglob('*')}

    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(FileExistsError, match='something else'):
        write_dataset(tmp_path, counts=COUNTS)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):

    def full(*args, **kwargs):
        raise OSError('no space left on device')

    monkeypatch.setattr(Image.Image, 'save', full)
    with pytest.raises(OSError, match='no space'):
        write_dataset(tmp_path / 'demo', counts=COUNTS)
    assert not list(tmp_path.iterdir())


def test_layout(dataset):
    for split, count in COUNTS['classification'].items():
        files = list(dataset.glob(f'classification/{split}/[0-9]/*.png'))
        assert len(files) == count
        assert {Image.open(f).size for f in files} == {(64, 64)}
    for split, count in COUNTS['segmentation'].items():
        names = [
            {
                file.name
                for file in dataset.glob(f'segmentation/{kind}/{split}/*.png')
            }
            for kind in ('images', 'annotations')
        ]
        assert names[0] == names[1] and len(names[0]) == count


def test_nothing_held_out_is_in_training():
    train, val = Source(held_out=False), Source(held_out=True)
    assert not set(train.indices) & set(val.indices)
    assert len(train.indices) + len(val.indices) == 1797
    for left, right in zip(train.photos, val.photos):
        assert left.shape[1] + right.shape[1] == 640


def test_annotations_agree_with_digits(dataset):
    for split, count in COUNTS['segmentation'].items():
        for i, (picture, annotation, label) in enumerate(
            generate('segmentation', split, count)
        ):
            saved = Image.open(
                dataset / f'segmentation/annotations/{split}/{i:05}.png'
            )
            assert saved.mode == 'P'
            np.testing.assert_array_equal(np.asarray(saved), annotation)
            values = set(np.unique(annotation))
            assert {0, 1 + label} <= values <= set(range(len(CLASSES)))
            # Digits are painted brightly on a darkened photograph.
            assert picture[annotation > 0].max(-1).min() > np.median(
                picture[annotation == 0].max(-1)
            )


def test_classification_label_is_the_digit_in_the_picture():
    for _, annotation, label in generate('classification', 'val', 20):
        assert set(np.unique(annotation)) == {0, 1 + label}


def test_iou():
    truth, prediction = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    confusion = confusion_matrix(truth, prediction, 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    np.testing.assert_allclose(iou_per_class(confusion), [50, 200 / 3, np.nan])


# -------------------------------------------------------------- the trainings


def demo_configs(family: str) -> tuple[Path, Path]:
    """Its classifier and its segmenter."""
    folder = 'demo' if family == 'vcmamba' else family
    names = f'{family}_demo_digits.py', f'{family}_demo_fpn_digits.py'
    return tuple(ROOT / 'configs' / folder / name for name in names)


@pytest.mark.parametrize('family', FAMILIES)
def test_what_make_trains(family, run):
    """The checkpoints are those that the configs write."""
    printed = run('make', '--dry-run', 'demo', f'BACKBONE={family}').stdout
    commands = [
        line.split()
        for line in printed.replace('\\\n', ' ').splitlines()
        if line.startswith(('python -m vcmamba_mm', 'python tools'))
    ]
    data, *trained, report = commands
    assert data[2:4] == ['vcmamba_mm.demo', 'data']
    classifier, segmenter = map(Config.fromfile, demo_configs(family))
    work = Path(classifier.work_dir).parent
    for cfg, (train, test), last, out in zip(
        (classifier, segmenter),
        (trained[:2], trained[2:]),
        (f'epoch_{classifier.max_epochs}', f'iter_{segmenter.max_iters}'),
        ('predictions.pkl', 'predictions'),
    ):
        assert cfg.model.backbone.type == FAMILIES[family]
        assert Path(cfg.work_dir).parent == work
        path = str(Path(cfg.filename).relative_to(ROOT))
        assert train == ['python', 'tools/train.py', path]
        checkpoint = f'{cfg.work_dir}/{last}.pth'
        out = f'{cfg.work_dir}/{out}'
        test_it = ['python', 'tools/test.py', path, checkpoint, '--out', out]
        assert test == test_it
    assert report[3:] == ['report', '--work-dir', str(work)]
    assert segmenter.model.backbone.init_cfg.checkpoint == trained[1][3]


@pytest.mark.parametrize('backbone', ['swin', '', '*'])
def test_make_without_such_a_backbone(run, backbone):
    process = run('make', 'demo', f'BACKBONE={backbone}', check=False)
    assert process.returncode == 2 and not process.stdout
    assert process.stderr.count('\n') == 1
    for expected in (f'unknown BACKBONE={backbone}', *FAMILIES):
        assert expected in process.stderr


@pytest.mark.parametrize('family', FAMILIES)
def test_segmenters_begin_with_the_classifier(family, tmp_path):
    """Each of its backbone's weights."""
    pytest.importorskip('mmpretrain')
    pytest.importorskip('mmseg')
    classifier, segmenter = map(Config.fromfile, demo_configs(family))
    init_default_scope('mmpretrain')
    weights = MODELS.build(classifier.model).state_dict()
    torch.save(dict(state_dict=weights, meta={}), tmp_path / 'epoch_5.pth')
    init_default_scope('mmseg')
    backbone = segmenter.model.backbone
    backbone.init_cfg.checkpoint = str(tmp_path / 'epoch_5.pth')
    model = MODELS.build(segmenter.model)
    model.init_weights()
    found = model.state_dict()
    for name, value in weights.items():
        if name.startswith('backbone.'):
            assert torch.equal(found[name], value), name


# ----------------------------------------------------------------- the report


def write_run(
    run_dir: Path, config: Path, data_root: Path, metric: str, value: float
) -> None:
    log_dir = run_dir / '20260102_030405'
    (log_dir / 'vis_data').mkdir(parents=True)
    scalars = [
        dict(loss=2.5, lr=0.01, epoch=1, iter=10, step=10),
        {metric: value - 1, 'step': 1},
        dict(loss=0.5, lr=0.001, epoch=2, iter=20, step=20),
        {metric: value, 'step': 2}
    ]  # yapf: disable
    (log_dir / 'vis_data' / 'scalars.json').write_text(
        '\n'.join(map(json.dumps, scalars))
    )
    # A later test leaves a log without any training.
    later = run_dir / '20260102_040405' / 'vis_data'
    later.mkdir(parents=True)
    (later / 'scalars.json').write_text(json.dumps({metric: 1.0, 'step': 0}))
    (log_dir / '20260102_030405.log').write_text(
        '2026/01/02 03:04:05 - mmengine - INFO - start\n'
        '2026/01/02 03:06:12 - mmengine - INFO - end\n'
    )
    cfg = Config.fromfile(config)
    for loop in ('train', 'val', 'test'):
        cfg[f'{loop}_dataloader'].dataset.data_root = str(data_root)
    cfg.dump(log_dir / 'vis_data' / 'config.py')
    torch.save(
        dict(
            state_dict={
                'backbone.weight': torch.zeros(1234),
                'backbone.running_mean': torch.zeros(7),
            }
        ),
        run_dir / 'epoch_2.pth',
    )
    (run_dir / 'last_checkpoint').write_text('elsewhere/epoch_2.pth')


@pytest.fixture
def work_dir(dataset, tmp_path, request) -> Path:
    """Six classified pictures, one wrongly; three of only background."""
    for config, folder, task, metric in zip(
        demo_configs(getattr(request, 'param', 'vcmamba')),
        ('classifier', 'segmenter'),
        ('classification', 'segmentation'),
        ('accuracy/top1', 'mIoU'),
    ):
        write_run(tmp_path / folder, config, dataset / task, metric, 80.0)
    samples = []
    for file in sorted(dataset.glob('classification/val/*/*.png')):
        label = int(file.parent.name)
        predicted = label if samples else (label + 1) % 10
        samples.append(
            dict(
                gt_label=torch.tensor([label]),
                pred_label=torch.tensor([predicted]),
                pred_score=torch.eye(10)[predicted],
                img_path=str(file),
            )
        )
    mmengine.dump(samples, tmp_path / 'classifier' / 'predictions.pkl')
    predictions = tmp_path / 'segmenter' / 'predictions'
    predictions.mkdir()
    for i in range(COUNTS['segmentation']['validation']):
        Image.new('L', (96, 96)).save(predictions / f'{i:05}.png')
    return tmp_path


class Text(HTMLParser):
    """Collects the text, the tags that stay open, and what is loaded."""

    def __init__(self, page: str):
        super().__init__()
        self.words, self.open, self.sources = [], [], []
        self.feed(page)
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag not in ('meta', 'img'):
            self.open.append(tag)
        self.sources += [v for k, v in attrs if k in ('src', 'href')]

    def handle_startendtag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ('src', 'href')]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize(
    'family, work_dir',
    [('vcmamba', 'vcmamba'), ('plainmamba', 'plainmamba')],
    indirect=['work_dir'],
)
def test_report(family, work_dir, dataset, capsys):
    assert main(['report', '--work-dir', str(work_dir)]) == 0
    page = Text((work_dir / 'report.html').read_text(encoding='utf-8'))
    assert not page.open
    assert all(
        s.startswith(('data:image/png;base64,', '#')) for s in page.sources
    )
    for expected in (
        f'{FAMILIES[family]} quick start A small {FAMILIES[family]} class',
        'top-1 on 6 held-out images 83.3 %',
        'chance level (guessing): 10.0 %',
        '1,234',
        'Training images 12 5',
        'Iterations 20 20',
        '2 min 07 s',
        '1 of 6 are wrong',
    ):
        assert expected in page.text
    # Predicting nothing but background is at chance.
    background = np.mean(
        [
            np.mean(np.asarray(Image.open(f)) == 0)
            for f in dataset.glob('segmentation/annotations/validation/*.png')
        ]
    )
    score, chance = re.search(
        r'mIoU on 3 held-out images ([\d.]+) % .*?background\): ([\d.]+) %',
        page.text,
    ).groups()
    assert score == chance
    digits = {
        v
        for f in dataset.glob('segmentation/annotations/validation/*.png')
        for v in np.unique(np.asarray(Image.open(f)))
    }
    assert float(score) == pytest.approx(
        100 * background / len(digits), abs=0.051
    )


@pytest.mark.parametrize(
    'missing',
    [
        'classifier/20260102_030405/vis_data/scalars.json',
        'classifier/last_checkpoint',
        'classifier/epoch_2.pth',
        'classifier/predictions.pkl',
    ],
)
def test_incomplete_work_dir(work_dir, missing, capsys):
    (work_dir / missing).unlink()
    assert main(['report', '--work-dir', str(work_dir)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert not (work_dir / 'report.html').exists()


def test_wrong_work_dir(tmp_path, capsys):
    missing = tmp_path / 'missing'
    assert main(['report', '--work-dir', str(missing)]) == 2
    assert capsys.readouterr().err == f'error: no such folder: {missing}\n'


def test_data_command_refuses_other_folders(tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert main(['data', '--root', str(tmp_path)]) == 2
    assert capsys.readouterr().err.count('\n') == 1
