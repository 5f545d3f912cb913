"""What goes wrong in long runs: the run ends with a clear line."""

import re
import subprocess

import pytest
from launch import Training, make_pictures

from vcmamba_mm.checkpoints import read_checkpoint

pytest.importorskip('mmpretrain')
pytestmark = pytest.mark.faults


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('data'))


def latest_iteration(work_dir):
    path = (work_dir / 'last_checkpoint').read_text()
    assert path in map(str, work_dir.glob('iter_*.pth'))
    for checkpoint in work_dir.glob('*.pth'):
        read_checkpoint(checkpoint)
    return read_checkpoint(path)['meta']['iter']


def test_hanging_data_worker(tmp_path, data):
    work_dir = tmp_path / 'work'
    training = Training(work_dir, data, config='hanging_run.py')
    assert training.wait() == 2
    assert any('data worker hangs' in line for line in training.errors)
    assert training.errors[-1].startswith('error: process 1 ')
    assert latest_iteration(work_dir) == 9


@pytest.mark.parametrize('action', ['stop', 'skip'])
def test_nan_in_one_process(tmp_path, data, action):
    """Both processes stop, or skip, before the weights are NaN."""
    work_dir = tmp_path / 'work'
    training = Training(
        work_dir,
        data,
        f'default_hooks.check_finite.action={action}',
        config='poisoned_run.py',
    )
    code = training.wait()
    where = 'gradients are NaN or infinite at iteration 14'
    if action == 'stop':
        assert code == 2
        assert any(where in line for line in training.errors)
        assert latest_iteration(work_dir) == 12
    else:
        assert code == 0, training.log[-3000:]
        assert f'{where}: skipped, 1 in a row' in training.log
        assert latest_iteration(work_dir) == 24
        saved = read_checkpoint(work_dir / 'iter_24.pth')
        assert all(v.isfinite().all() for v in saved['state_dict'].values())


def test_full_disk(tmp_path, data):
    """A file system of its own, with room for two checkpoints."""
    disk, copy = tmp_path / 'disk', tmp_path / 'copy'
    disk.mkdir()
    unshare = ('unshare', '--map-root-user', '--mount')
    if subprocess.run([*unshare, 'true'], capture_output=True).returncode:
        pytest.skip('needs unshare --map-root-user --mount')
    script = (
        f'mount -t tmpfs -o size=1700k tmpfs {disk} && "$@"; code=$?; '
        f'cp -r {disk} {copy}; exit $code'
    )
    training = Training(
        disk / 'work',
        data,
        'train_cfg.val_interval=100',
        before=(*unshare, 'bash', '-c', script, 'bash'),
    )
    assert training.wait() == 2
    assert re.match(
        'error: .*iter_9.pth cannot be written '
        r'\(No space left on device, 0.7 MB\)',
        training.errors[0],
    )
    work_dir = copy / 'work'
    assert (work_dir / 'last_checkpoint').read_text().endswith('iter_6.pth')
    assert {p.name for p in work_dir.glob('*.pth')} == {
        'iter_3.pth',
        'iter_6.pth',
    }
    assert read_checkpoint(work_dir / 'iter_6.pth')['meta']['iter'] == 6
    assert not list(work_dir.glob('.*'))
