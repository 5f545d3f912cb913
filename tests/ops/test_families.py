"""The first mixers of three released models, by the operator and a few lines.

Recorded outputs are in tests/fixtures/golden. What is around the scan is
written as the papers have it (arXiv 2401.10166, 2407.08083, 2403.17695).
"""

import numpy as np
import torch
import torch.nn.functional as F
from conftest import ROOT

from vcmamba_mm.ops import path_scan

GOLDEN = ROOT / 'tests/fixtures/golden'
CLOSE = dict(rtol=0, atol=1e-5)
VMAMBA = ('row', 'column', 'row_reverse', 'column_reverse')


def recorded(path):
    arrays = np.load(GOLDEN / path)
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def weights(family, prefix):
    file = torch.load(GOLDEN / family / 'tiny_release.pth', weights_only=True)
    state_dict = file.get('state_dict') or file['model']
    return {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }


def tokens(x):
    """(batch, channels, height, width) -> (batch, tokens, channels)."""
    return x.flatten(2).transpose(1, 2)


def ss2d(w, x, merged=None):
    """VMamba's mixer of a map: projections of their own for each path."""
    height, width = x.shape[2:]
    x = tokens(x) @ w['in_proj.weight'].T
    x = x.transpose(1, 2).unflatten(2, (height, width))
    x = F.conv2d(x, w['conv2d.weight'], padding=1, groups=x.shape[1])
    x = tokens(F.silu(x))
    rank, state = w['dt_projs_weight'].shape[2], w['A_logs'].shape[1]
    steps = torch.einsum('ble,kre->blkr', x, w['x_proj_weight'])
    delta, B, C = steps.split([rank, state, state], -1)
    y = path_scan(
        x,
        torch.einsum('blkr,ker->blke', delta, w['dt_projs_weight']),
        -w['A_logs'].exp().unflatten(0, (4, -1)),
        B,
        C,
        w['Ds'].unflatten(0, (4, -1)),
        height,
        width,
        paths=VMAMBA,
        snake=False,
        param_order='path',
        delta_bias=w['dt_projs_bias'],
        delta_softplus=True,
    )
    if merged is not None:
        torch.testing.assert_close(y, tokens(merged), **CLOSE)
    y = F.layer_norm(y, y.shape[-1:], w['out_norm.weight'], w['out_norm.bias'])
    y = y @ w['out_proj.weight'].T
    return y.transpose(1, 2).unflatten(2, (height, width))


def test_vmamba():
    its = recorded('vmamba/tiny_io.npz')
    w = weights('vmamba', 'layers.1.blocks.0.op.')
    y = ss2d(w, its['ss2d_in'], its['ss2d_merged'])
    torch.testing.assert_close(y, its['ss2d_out'], **CLOSE)


def test_vmamba_with_four_states_and_its_gradients():
    its = recorded('vmamba/ss2d_n4.npz')
    w = {
        key.removeprefix('param.'): value.requires_grad_()
        for key, value in its.items()
        if key.startswith('param.')
    }
    x = its['input'].requires_grad_()
    y = ss2d(w, x)
    torch.testing.assert_close(y, its['output'], **CLOSE)
    (y * its['weight']).sum().backward()
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, its['grad_input'], **close)
    for name, weight in w.items():
        torch.testing.assert_close(weight.grad, its[f'grad.{name}'], **close)


def test_mambavision():
    """One path, over windows whose two halves go different ways."""
    its = recorded('mambavision/tiny_io.npz')
    w = weights('mambavision', 'levels.2.blocks.0.mixer.')
    x, z = (its['mixer_in'] @ w['in_proj.weight'].T).chunk(2, -1)
    x, z = (
        F.silu(
            F.conv1d(
                half.transpose(1, 2),
                w[f'conv1d_{name}.weight'],
                padding=1,
                groups=half.shape[-1],
            )
        ).transpose(1, 2)
        for half, name in ((x, 'x'), (z, 'z'))
    )
    rank, state = w['dt_proj.weight'].shape[1], w['A_log'].shape[1]
    steps = x @ w['x_proj.weight'].T
    delta, B, C = steps[:, :, None].split([rank, state, state], -1)
    y = path_scan(
        x,
        delta @ w['dt_proj.weight'].T,
        -w['A_log'].exp()[None],
        B,
        C,
        w['D'][None],
        4,
        4,
        paths=('row',),
        snake=False,
        delta_bias=2 * w['dt_proj.bias'][None],
        delta_softplus=True,
    )
    y = torch.cat([y, z], -1) @ w['out_proj.weight'].T
    torch.testing.assert_close(y, its['mixer_out'], **CLOSE)


def test_plainmamba():
    """VCMamba's scan, gated."""
    its = recorded('plainmamba/tiny_io.npz')
    w = weights('plainmamba', 'backbone.layers.0.mamba.')
    x, z = F.linear(
        its['mixer_in'], w['in_proj.weight'], w['in_proj.bias']
    ).chunk(2, -1)
    x = F.conv2d(
        x.transpose(1, 2).unflatten(2, (6, 6)),
        w['conv2d.weight'],
        w['conv2d.bias'],
        padding=3,
        groups=x.shape[-1],
    )
    x = tokens(F.silu(x))
    rank, state = w['dt_proj.weight'].shape[1], w['A_log'].shape[1]
    steps = x @ w['x_proj.weight'].T
    delta, B, C = steps[:, :, None].split([rank, state, state], -1)
    y = path_scan(
        x,
        delta @ w['dt_proj.weight'].T,
        -w['A_log'].exp()[None],
        B,
        C,
        w['D'][None],
        6,
        6,
        direction_B=w['direction_Bs'],
        delta_bias=2 * w['dt_proj.bias'][None],
        delta_softplus=True,
    )
    y = F.linear(y * F.silu(z), w['out_proj.weight'], w['out_proj.bias'])
    torch.testing.assert_close(y, its['mixer_out'], **CLOSE)
