"""What forward and backward pass allocate at their peak."""

import measure
import pytest
import torch
from released_like import four_scans, selective_scan_ref
from test_backends import backend
from test_path_scan import VMAMBA, cast, make, scan
from test_scan import make_inputs

from vcmamba_mm.ops import multi_directional_scan
from vcmamba_mm.ops.scan_inputs import Options

HEIGHT, WIDTH, CHANNELS, STATES = 32, 32, 16, 16


def peak(scan) -> int:
    inputs = make_inputs(
        1, HEIGHT, WIDTH, CHANNELS, STATES, dtype=torch.float32
    )

    def call(_):
        y = scan(*inputs, HEIGHT, WIDTH)
        return torch.autograd.grad(y.sum(), inputs)

    return measure.peak_memory(call, 'cpu')


@pytest.mark.parametrize('kept, expected', [(True, 3 << 20), (False, 2 << 20)])
def test_peak_memory_is_that_of_the_allocations(kept, expected):
    def call(_):
        small = torch.empty(1 << 20, dtype=torch.uint8)
        if not kept:
            del small
        large = torch.empty(2 << 20, dtype=torch.uint8)
        del large

    assert measure.peak_memory(call, 'cpu') == expected


def test_a_third_of_the_memory_of_four_selective_scans():
    ours = peak(multi_directional_scan)
    theirs = peak(lambda *inputs: four_scans(selective_scan_ref, *inputs))
    assert ours <= theirs / 3
    # Not even one state for each path, token and channel is kept at a time.
    assert ours < 4 * HEIGHT * WIDTH * CHANNELS * STATES * 4


@pytest.mark.parametrize('name', [backend('numba')])
def test_little_more_than_what_comes_and_goes(name):
    """VMamba's first stage: delta is four times as large as x."""
    tensors = cast(
        make((56, 56), True, 96, 1, 1, ('direction_B',), VMAMBA),
        torch.float32,
    )
    given = [t for t in tensors if t is not None]
    options = Options(56, 56, VMAMBA, False, 'path', delta_softplus=True)

    def call(_):
        y = scan(tensors, options, name)
        return torch.autograd.grad(y.sum(), given)

    inputs = sum(t.nbytes for t in given)
    needed = inputs + tensors.x.nbytes + inputs  # y is like x
    assert inputs + measure.peak_memory(call, 'cpu') <= 1.3 * needed
