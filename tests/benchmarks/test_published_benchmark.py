"""Time and memory of the published sizes, with small models in their place."""

import json
from functools import partial

import backbones
import measure
import published
import pytest
import torch
from torch import nn

from vcmamba_mm.analysis.timing import digits
from vcmamba_mm.deploy import fuse
from vcmamba_mm.models import MambaVision, PlainMamba

SMALL = dict(
    MambaVision=partial(
        MambaVision,
        arch=dict(
            embed_dims=(8, 16, 24, 32),
            depths=(1, 1, 2, 2),
            stem_dims=8,
            num_heads=(2, 4),
            layer_scale=None,
        ),
    ),
    PlainMamba=partial(
        PlainMamba,
        arch=dict(embed_dims=16, depth=2, stem_convs=1, extra_conv=True),
        final_norm=False,
    ),
)


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(*argv):
        for name, make in SMALL.items():
            monkeypatch.setitem(
                backbones.FAMILIES, name, lambda arch, make=make: make()
            )
        published.main(
            ['--quick', '--device', 'cpu', '--out', str(tmp_path), *argv]
        )
        return {
            path.stem: json.loads(path.read_text())
            for path in tmp_path.glob('*.json')
        }

    return run


def test_quick_run(run, tmp_path):
    found = run('--models', 'MambaVision-T', 'PlainMamba-L2')
    assert sorted(found) == ['published_cpu', 'resolution_cpu']
    forms = {
        name: [(r['model'], r['variant'], r['size']) for r in its['results']]
        for name, its in found.items()
    }
    assert forms['published_cpu'] == [
        (name, form, 32)
        for name in ('MambaVision-T', 'PlainMamba-L2')
        for form in ('', 'fused')
    ]
    assert forms['resolution_cpu'] == [
        (*contestant, size)
        for size in (32, 54)
        for contestant in (
            ('MambaVision-T', ''),
            ('MambaVision-T', 'one window'),
            ('PlainMamba-L2', ''),
        )
    ]
    for name, its in found.items():
        text = (tmp_path / f'{name}.md').read_text()
        for row in its['results']:
            low, median, high = row['quartiles_ms']
            assert 0 < low <= median <= high
            assert 0 < row['error'] < backbones.TOLERANCE
            assert row['peak_bytes'] > 1000
            mib = digits(row['peak_bytes'] / 2**20)
            assert f' | {mib} | ' in text and row['model'] in text
    assert (tmp_path / 'resolution_cpu.png').read_bytes()[:4] == b'\x89PNG'
    assert not (tmp_path / 'published_cpu.png').exists()


def test_one_window_costs_less_than_padded_ones(run):
    """At 54 pixels 4 x 4 tokens stand in a window of 14 x 14."""
    rows = run('--models', 'MambaVision-T', '--parts', 'resolution')
    rows = rows['resolution_cpu']['results']
    padded, whole = (row['peak_bytes'] for row in rows[2:])
    assert whole < padded


def test_wrong_model_stops_the_benchmark(run, monkeypatch, tmp_path):
    def wrong(model):
        fuse(model)
        nn.init.normal_(next(model.parameters()))

    monkeypatch.setattr(backbones, 'fuse', wrong)
    with pytest.raises(
        measure.WrongResultError, match='PlainMamba-L1, fused is wrong'
    ):
        run('--models', 'PlainMamba-L1')
    assert not list(tmp_path.iterdir())


def test_published_sizes_can_be_built():
    with torch.device('meta'):
        for name in published.PUBLISHED:
            family, _, arch = name.partition('-')
            backbones.FAMILIES[family](arch)
    assert set(published.EQUAL) < set(published.PUBLISHED)


def test_peak_memory_is_what_is_allocated_at_once():
    """Two maps at a time of three: 4 bytes each."""
    x = torch.zeros(1000, 1000)

    def call(_):
        y = x + 1
        z = y + 1
        del y
        z + 1

    peak = measure.peak_memory(call, 'cpu')
    assert peak == pytest.approx(2 * 4 * 1000**2, rel=1e-4)  # and scalars
