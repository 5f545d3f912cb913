"""Files with the released names, and back."""

import pytest
import torch
from conftest import GOLDEN, ROOT

from vcmamba_mm.checkpoints import read_checkpoint

pytest.importorskip('mmpretrain')

RELEASE = GOLDEN / 'tiny_release.pth'


def test_convert_there_and_back(run, run_here, tmp_path):
    ours, back = tmp_path / 'ours.pth', tmp_path / 'back.pth'
    assert (
        'keys written'
        in run('tools/convert_checkpoint.py', RELEASE, ours).stdout
    )
    run_here('convert_checkpoint.py', ours, back, '--reverse')
    released = read_checkpoint(RELEASE)['model']
    converted = read_checkpoint(back)['model']
    assert list(converted) == list(released)
    assert all(torch.equal(converted[k], v) for k, v in released.items())
    run_here('convert_checkpoint.py', RELEASE, ours, '--weights', 'ema')
    weight = read_checkpoint(ours)['state_dict']['head.fc.weight']
    torch.testing.assert_close(weight, released['head.weight'] + 0.01)


@pytest.mark.parametrize(
    'name, entry, key',
    [
        ('vmamba/tiny_release', 'model', 'mixer.dt_bias'),
        ('vmamba/tiny_downstream', 'state_dict', 'mixer.dt_bias'),
        ('plainmamba/tiny_release', 'state_dict', 'mixer.direction_B'),
    ],
)
def test_files_of_other_families(run_here, tmp_path, name, entry, key):
    """Of classifiers, and of segmenters and detectors."""
    path = ROOT / f'tests/fixtures/golden/{name}.pth'
    released = read_checkpoint(path)[entry]
    if 'downstream' in name:
        released['decode_head.conv_seg.bias'] = torch.ones(3)
        path = tmp_path / 'segmenter.pth'
        torch.save({entry: released}, path)
    ours, back = tmp_path / 'ours.pth', tmp_path / 'back.pth'
    run_here('convert_checkpoint.py', path, ours)
    run_here('convert_checkpoint.py', ours, back, '--reverse')
    keys = read_checkpoint(ours)['state_dict'].keys()
    assert f'backbone.stages.0.blocks.0.{key}' in keys
    converted = read_checkpoint(back)[entry]
    assert list(converted) == list(released)
    assert all(torch.equal(converted[k], v) for k, v in released.items())


def test_convert_writes_nothing_on_error(run_here, tmp_path):
    dst = tmp_path / 'dst.pth'
    foreign = tmp_path / 'foreign.pth'
    torch.save(torch.nn.Linear(2, 2).state_dict(), foreign)
    for args, message in (
        ([RELEASE, RELEASE], 'name another file'),
        ([RELEASE, dst, '--reverse'], 'leave out --reverse'),
        ([foreign, dst], 'has no released names'),
        ([foreign, dst, '--reverse'], 'keys are not those of'),
    ):
        error = run_here('convert_checkpoint.py', *args)
        assert error.startswith('error: ') and message in error
        assert not dst.exists()
