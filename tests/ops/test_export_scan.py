"""The scan for exports against the specification."""

import pytest
import torch
from conftest import needs_export

from vcmamba_mm.ops import multi_directional_scan
from vcmamba_mm.ops.export_scan import export_scan, import_scan_op
from vcmamba_mm.ops.reference import reference_scan
from vcmamba_mm.ops.scan_inputs import Options, Tensors, share
from vcmamba_mm.ops.scan_paths import PATHS


@needs_export
@pytest.mark.parametrize(
    'num_paths, snake', [(4, True), (1, True), (2, False)]
)
@pytest.mark.parametrize('param_order', ['raster', 'path'])
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (7, 1), (5, 8), (7, 7)])
def test_equals_the_reference(size, param_order, num_paths, snake):
    batch, length, channels, states = 2, size[0] * size[1], 6, 3
    inputs = (
        torch.randn(batch, length, channels),
        torch.rand(batch, length, channels),
        -torch.rand(channels, states),
        torch.randn(batch, length, states),
        torch.randn(batch, length, states),
        torch.randn(channels),
        torch.randn(5, states),
    )
    inputs = [t.double() for t in inputs]
    expected = multi_directional_scan(
        *inputs,
        *size,
        param_order=param_order,
        num_paths=num_paths,
        snake=snake,
        backend='reference',
    )
    options = Options(*size, PATHS[:num_paths], snake, param_order)
    y = export_scan(share(Tensors(*inputs)), options)
    torch.testing.assert_close(y, expected)


def test_older_pytorch_is_refused(monkeypatch):
    version = torch.torch_version.TorchVersion('2.4.1+cpu')
    monkeypatch.setattr(torch, '__version__', version)
    with pytest.raises(ImportError, match='PyTorch >= 2.8.* is 2.4.1'):
        import_scan_op()


@needs_export
@pytest.mark.parametrize('states', [1, 3])
@pytest.mark.parametrize('size', [(1, 1), (4, 4), (5, 9)])
def test_paths_with_parameters_of_their_own(size, states):
    """In chunks of 16 steps where there is one state."""
    batch, length, channels, paths = 2, size[0] * size[1], 6, 3
    tensors = Tensors(
        torch.randn(batch, length, channels),
        torch.randn(batch, length, paths, channels),
        -torch.rand(paths, channels, states),
        torch.randn(batch, length, paths, states),
        torch.randn(batch, length, paths, states),
        torch.randn(paths, channels),
        delta_bias=torch.randn(paths, channels),
    ).to(torch.float64)
    names = ('column', 'row', 'column_reverse')
    options = Options(*size, names, False, 'path', True)
    torch.testing.assert_close(
        export_scan(tensors, options), reference_scan(tensors, options)
    )
