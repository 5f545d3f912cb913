"""The benchmark of models runs an installed release on a CPU."""

import sys
from types import SimpleNamespace

import backbones
import model
import pytest
import released_like
import torch
from torch import nn

from vcmamba_mm.analysis.timing import QUICK
from vcmamba_mm.ops import selective_scan

PACKAGE = """
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 16, 16)
        self.x_proj = nn.Linear(8, 12)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        u = self.conv(images).flatten(2)
        delta, B, C = self.x_proj(u.mT).mT.split((8, 2, 2), 1)
        ones = self.conv.bias.new_ones(8).float()
        self.scanned = u, delta, -ones[:, None].expand(8, 2), B, C, ones
        y = selective_scan_fn(
            *self.scanned,
            z=None,
            delta_bias=0.3 * ones,
            delta_softplus=True,
            return_last_state=None,
        )
        return self.head(y.mean(2))


def create_model(name):
    assert name == 'mamba_vision_T'
    return Model()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / 'a_release.py').write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield released_like.released_package('a_release')
    sys.modules.pop('a_release')


def test_its_scan_is_replaced(package):
    """By ours, with the layout and the arguments of mamba-ssm's."""
    its = package.create_model('mamba_vision_T')
    its.head = nn.Identity()
    u, delta, A, B, C, D = (its(torch.randn(2, 3, 64, 48)), its.scanned)[1]
    y = package.selective_scan_fn(u, delta, A, B, C, D, None, 0.3 * D, True)
    expected = selective_scan(
        *(u.mT, delta.mT, A, B.mT, C.mT, D),
        delta_bias=0.3 * D,
        delta_softplus=True,
        backend='reference',
    )
    torch.testing.assert_close(y, expected.mT)
    with pytest.raises(NotImplementedError):
        package.selective_scan_fn(u, delta, A, B, C, D, z=u)


def test_nothing_stays_in_the_place_of_mamba_ssm(package, monkeypatch):
    own = object()
    monkeypatch.setitem(sys.modules, 'mamba_ssm', own)
    assert released_like.released_package('json').__name__ == 'json'
    assert sys.modules['mamba_ssm'] is own
    assert 'mamba_ssm.ops.selective_scan_interface' not in sys.modules


def test_not_installed(tmp_path, monkeypatch):
    assert released_like.released_package('not_installed') is None
    (tmp_path / 'needs_more.py').write_text('import not_installed')
    monkeypatch.syspath_prepend(tmp_path)
    assert released_like.released_package('needs_more') is None
    monkeypatch.setattr(backbones, 'mambavision', None)
    assert backbones.released_mambavision() == []


def test_it_is_timed(package, monkeypatch):
    monkeypatch.setattr(backbones, 'mambavision', package)
    case = model.Case(backbones.INFERENCE, 64, 2)
    its = backbones.released_mambavision()
    [result] = model.measure_case(case, its, 'cpu', QUICK).values()
    assert result['params'] == 3 * 16 * 16 * 8 + 8 + 9 * 12  # without head
    assert 0 < result['error'] < backbones.TOLERANCE
    assert result['timing'].median > 0


@pytest.mark.parametrize('installed', [True, False])
def test_the_report_says_whether_it_is_there(installed, monkeypatch):
    monkeypatch.setattr(
        model, 'mambavision', SimpleNamespace() if installed else None
    )
    lines = model.report_lines('cpu', {}, [], {})
    assert any('mambavision' in line for line in lines) != installed
