import json
import time

import pytest
import torch
from conftest import CONFIGS
from PIL import Image

from vcmamba_mm.analysis.resolution import SizeTiming, time_against_size
from vcmamba_mm.analysis.timing import Timing, time_side_by_side


class Sleeper(torch.nn.Module):
    """Takes a millisecond for a thousand pixels, and remembers its inputs."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, x, mode):
        assert mode == 'tensor' and not torch.is_grad_enabled()
        self.shapes.append(tuple(x.shape))
        time.sleep(x.shape[0] * x.shape[2] * x.shape[3] / 1e6)


def test_time_against_size():
    model = Sleeper()
    shapes = [(32, 32), (64, 32), (128, 128)]
    timings = time_against_size(
        model, shapes, 4, 'cpu', rounds=3, warm_ups=1, sample_seconds=0
    )
    assert [t.batch_size for t in timings] == [4, 2, 1]
    assert {shape[0] for shape in model.shapes} == {1, 2, 4}
    for t in timings:
        pixels = t.shape[0] * t.shape[1]
        # a sleep may take longer, but not be shorter
        assert t.one.median >= pixels / 1000
        assert t.ms_per_megapixel >= 1000
        assert t.throughput <= 1e6 / pixels
    assert timings[2].one == timings[2].batch


def test_derived_figures():
    one = Timing(([2.0, 2.0], [2.0, 2.0]), 1, 1)
    batch = Timing(([10.0, 10.0], [10.0, 10.0]), 1, 1)
    timing = SizeTiming((100, 200), 8, one, batch)
    assert timing.throughput == pytest.approx(800)
    assert timing.ms_per_megapixel == pytest.approx(62.5)


def test_contestants_take_turns_and_inputs_rotate():
    calls = []
    timings = time_side_by_side(
        {name: lambda i, name=name: calls.append((name, i)) for name in 'ab'},
        'cpu',
        rounds=5,
        warm_ups=2,
        sample_seconds=0,
    )
    assert len(calls) == 2 * 2 + 2 * 2 * 5
    assert {i for _, i in calls} == {0, 1, 2}
    turns = ''.join(name for name, _ in calls[4:])
    assert all(turns[i : i + 4].count('a') == 2 for i in range(0, 20, 4))
    assert len({turns[i : i + 4] for i in range(0, 20, 4)}) > 1
    assert [len(entry) for entry in timings['a'].entries_ms] == [5, 5]


def test_tool(run_here, tmp_path):
    out = tmp_path / 'new folder' / 'tiny'
    config = CONFIGS / 'tiny_classifier.py'
    options = ['--quick', '--size', 64, 128, '--batch-size', 4, '--out', out]
    log = run_here('benchmark.py', config, *options)
    assert '| 64 x 64 |' in log and '| 128 x 128 |' in log
    assert 'From 64 to 128 pixels' in log and '4-fold' in log
    sizes = json.loads((tmp_path / 'new folder/tiny.json').read_text())
    assert [size['batch_size'] for size in sizes['sizes']] == [4, 1]
    assert Image.open(f'{out}.png').size[0] > 1000
