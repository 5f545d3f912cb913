"""tools/plot_logs.py on logs of MMEngine's form."""

import json
import runpy
import sys

import pytest
from conftest import ROOT
from PIL import Image

plot_logs = runpy.run_path(str(ROOT / 'tools' / 'plot_logs.py'))
read_run, curve = plot_logs['read_run'], plot_logs['curve']


def write(run, stamp, lines, end='\n'):
    folder = run / stamp / 'vis_data'
    folder.mkdir(parents=True)
    text = '\n'.join(json.dumps(line) for line in lines) + end
    (folder / 'scalars.json').write_text(text)
    return folder / 'scalars.json'


def step(i, loss, **kwargs):
    return dict(loss=loss, lr=0.1, time=1.0, iter=i, step=i, **kwargs)


@pytest.fixture
def by_epoch(tmp_path):
    """Two epochs of five iterations, every second one logged."""
    run = tmp_path / 'cls'
    write(
        run,
        '20260101_000000',
        [
            step(2, 5.0, epoch=1),
            step(4, 4.0, epoch=1),
            {'accuracy/top1': 10.0, 'time': 9.0, 'step': 1},
            step(6, 3.0, epoch=2),
            step(8, 2.0, epoch=2),
            step(10, 1.0, epoch=2),
            {'accuracy/top1': 20.0, 'time': 9.0, 'step': 2},
        ],
    )
    return run


@pytest.fixture
def by_iter(tmp_path):
    """A run that was killed, and resumed from iteration 2."""
    run = tmp_path / 'seg'
    write(
        run,
        '20260101_000000',
        [step(1, 9.0), step(2, 8.0), dict(mIoU=1.0, step=2), step(3, 7.0)],
        end='\n{"loss": 6.0, "lr"',
    )
    write(
        run,
        '20260102_000000',
        [step(3, 7.5), step(4, 6.5), dict(mIoU=2.0, step=4)],
    )
    return run


def test_epochs(by_epoch):
    lines = read_run(by_epoch)
    x, y = curve(lines, 'accuracy/top1', 'epoch', by_epoch)
    assert (x, y) == ((1, 2), (10, 20))
    assert curve(lines, 'accuracy/top1', 'iter', by_epoch)[0] == (5, 10)
    x, y = curve(lines, 'loss', 'epoch', by_epoch)
    assert x == pytest.approx((0.4, 0.8, 1.2, 1.6, 2.0))
    # of training alone
    assert curve(lines, 'time', 'iter', by_epoch)[1] == (1,) * 5


def test_resumed_run(by_iter):
    lines = read_run(by_iter)
    assert curve(lines, 'loss', 'iter', by_iter) == (
        (1, 2, 3, 4),
        (9, 8, 7.5, 6.5),
    )
    assert curve(lines, 'mIoU', 'iter', by_iter) == ((2, 4), (1, 2))


def test_resumed_where_it_validates(by_epoch):
    """Such a log may have nothing but a validation."""
    line = {'accuracy/top1': 21.0, 'time': 9.0, 'step': 2}
    write(by_epoch, '20260102_000000', [line])
    lines = read_run(by_epoch)
    points = curve(lines, 'accuracy/top1', 'epoch', by_epoch)
    assert points == ((1, 2), (10, 21))
    assert curve(lines, 'loss', 'iter', by_epoch)[1] == (5, 4, 3, 2, 1)


def test_picture(monkeypatch, by_epoch, by_iter, tmp_path):
    log = next(by_iter.rglob('20260102*/vis_data/scalars.json'))
    out = tmp_path / 'new' / 'curves.png'
    line = (
        f'plot_logs.py {by_epoch} {by_iter} {log} --keys loss lr '
        '--labels a b b --out'
    )
    monkeypatch.setattr(sys, 'argv', [*line.split(), str(out)])
    plot_logs['main']()
    with Image.open(out) as image:
        assert image.size == (1200, 432)
        colours = {rgb for _, rgb in image.convert('RGB').getcolors(1 << 20)}
    # matplotlib's first two are there, its third is not
    assert {(31, 119, 180), (255, 127, 14)} <= colours
    assert (44, 160, 44) not in colours


def test_errors(by_epoch, by_iter, tmp_path):
    with pytest.raises(FileNotFoundError, match='no log in .*nowhere'):
        read_run(tmp_path / 'nowhere')
    lines = read_run(by_iter)
    with pytest.raises(ValueError, match="no 'top1'; it has iter, loss"):
        curve(lines, 'top1', 'iter', by_iter)
    with pytest.raises(ValueError, match='use --x iter'):
        curve(lines, 'loss', 'epoch', by_iter)
    log = next(by_epoch.rglob('scalars.json'))
    log.write_text('{"loss"\n{}\n')
    with pytest.raises(ValueError, match='line 1, is not JSON'):
        read_run(log)
