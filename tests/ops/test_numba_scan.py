"""Where and how the kernels of Numba run; other tests see what they give."""

import concurrent.futures
import logging
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from scan_cases import make_inputs

from vcmamba_mm.ops import (
    available_backends,
    multi_directional_scan,
    selective_scan,
)

pytestmark = pytest.mark.skipif(
    available_backends()['numba'] is not None,
    reason=str(available_backends()['numba']),
)
SIZE = (7, 9)


def scans(**kwargs):
    inputs = make_inputs(4, *SIZE, 200, 8, torch.float32)
    y = multi_directional_scan(*inputs, *SIZE, backend='numba', **kwargs)
    return y.detach(), *torch.autograd.grad(y.square().sum(), inputs)


def seeded_scans():
    torch.manual_seed(0)
    return scans()


def test_taken_by_default_on_a_cpu(monkeypatch):
    inputs = make_inputs(dtype=torch.float32)
    from vcmamba_mm.ops import numba_scan

    calls = []
    forward = numba_scan.scan_forward
    monkeypatch.setattr(
        numba_scan,
        'scan_forward',
        lambda *args: calls.append(args) or forward(*args),
    )
    multi_directional_scan(*inputs, 5, 8)
    assert len(calls) == 1


def test_threads_change_nothing_but_the_order_of_sums():
    expected = seeded_scans()
    torch.set_num_threads(3)
    for result, its in zip(seeded_scans(), expected):
        torch.testing.assert_close(result, its)
    again = seeded_scans()
    assert all(map(torch.equal, again, seeded_scans()))


def test_several_threads_of_python_at_once():
    torch.set_num_threads(2)
    expected = seeded_scans()
    inputs = [make_inputs(4, *SIZE, 200, 8, torch.float32) for _ in range(6)]

    def scan(tensors):
        with torch.no_grad():
            return multi_directional_scan(*tensors, *SIZE, backend='numba')

    alone = [scan(tensors) for tensors in inputs]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        together = list(pool.map(scan, inputs))
    assert all(map(torch.equal, together, alone))
    assert all(map(torch.equal, seeded_scans(), expected))


def _in_a_fork(queue):
    torch.set_num_threads(1)  # PyTorch's own pool does not survive it
    queue.put([t.numpy() for t in seeded_scans()])


def test_after_a_fork():
    torch.set_num_threads(2)
    seeded_scans()  # there are threads now
    context = multiprocessing.get_context('fork')
    queue = context.SimpleQueue()
    process = context.Process(target=_in_a_fork, args=(queue,))
    process.start()
    results = queue.get()
    process.join(60)
    assert process.exitcode == 0
    for result, its in zip(results, seeded_scans()):
        torch.testing.assert_close(torch.from_numpy(result), its)


def test_compiling_is_said_in_one_line(caplog, monkeypatch):
    from vcmamba_mm.ops import numba_scan

    class Timer:  # whose time has come
        daemon = False

        def __init__(self, seconds, function, args):
            self.fire = lambda: function(*args)

        def start(self):
            self.fire()

        def cancel(self):
            pass

    monkeypatch.setattr(numba_scan.threading, 'Timer', Timer)
    with caplog.at_level(logging.WARNING), numba_scan._told_if_it_takes_long():
        pass
    (record,) = caplog.records
    assert 'compiled for this CPU, once' in record.getMessage()


def test_storages_can_still_be_resized():
    """FSDP frees weights so."""
    inputs = make_inputs(1, 2, 3, 4, 1, torch.float32)
    y = multi_directional_scan(*inputs, 2, 3, backend='numba')
    grad_y = torch.ones_like(y)
    torch.autograd.backward(y, grad_y)
    for tensor in (*inputs, grad_y):
        assert tensor.untyped_storage().resizable()


def test_not_a_number_stays_one():
    x, *others = (t.detach() for t in make_inputs(dtype=torch.float32))
    x[0, 3, 2] = float('nan')
    y = multi_directional_scan(x, *others, 5, 8, backend='numba')
    assert y[0, :, 2].isnan().all()  # it is on all paths
    assert y[0, :, :2].isfinite().all() and y[1].isfinite().all()
    x[0, 3, 2] = 0
    delta = others[0].clone()
    delta[0, 0, 1] = float('nan')
    y = multi_directional_scan(x, delta, *others[1:], 5, 8, backend='numba')
    assert y[0, :, 1].isnan().any() and y[0, :, 2:].isfinite().all()


def test_saved_programs_choose_where_they_run(tmp_path):
    """Not where they were traced: elsewhere may be a GPU, or no Numba."""

    class Scan(torch.nn.Module):
        def forward(self, x, delta, A, B):
            return selective_scan(x, delta, A, B, B)

    x, A, B = torch.rand(1, 3, 2), -torch.rand(2, 4), torch.rand(1, 3, 4)
    inputs = (x, x, A, B)
    torch.jit.trace(Scan(), inputs).save(tmp_path / 'scan.pt')
    program = torch.export.export(Scan(), inputs)
    torch.export.save(program, tmp_path / 'scan.pt2')
    torch.save((inputs, Scan()(*inputs)), tmp_path / 'expected.pth')
    script = (
        'import sys; sys.modules["numba"] = None\n'
        'import torch, vcmamba_mm.ops\n'
        'inputs, expected = torch.load("expected.pth")\n'
        'for scan in (torch.jit.load("scan.pt"), '
        'torch.export.load("scan.pt2").module()):\n'
        '    torch.testing.assert_close(scan(*inputs), expected)\n'
    )
    subprocess.run(
        [sys.executable, '-c', script],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        check=True,
    )


def test_works_without_numba():
    """'auto' is 'torch' then, and nothing else is imported."""
    script = (
        'import sys; sys.modules["numba"] = None\n'
        'import torch\n'
        'from vcmamba_mm.ops import available_backends, selective_scan\n'
        'x = torch.rand(1, 3, 2)\n'
        'A, B = -torch.rand(2, 4), torch.rand(1, 3, 4)\n'
        'print(selective_scan(x, x, A, B, B).shape)\n'
        'print(available_backends()["numba"])'
    )
    output = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    assert 'torch.Size([1, 3, 2])' in output
    assert 'pip install' in output
