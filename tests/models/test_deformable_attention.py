"""Deformable attention against its formula and mmcv's form."""

import copy

import pytest
import torch
from torch import nn

from vcmamba_mm.models.plainmamba import deformable_attention


def attention_inputs(levels=3, points=4):
    """Points inside of the maps, at their edges and far outside."""
    sizes = [(5, 7), (3, 4), (1, 2)][:levels]
    total = sum(height * width for height, width in sizes)
    value = torch.randn(2, total, 2, 3, dtype=torch.float64)
    shape = (2, 6, 2, levels, points)
    locations = torch.empty(*shape, 2).double().uniform_(-0.3, 1.3)
    locations[0, 0] = 5.0
    return value, sizes, locations, torch.rand(shape, dtype=torch.float64)


def attention_formula(value, sizes, locations, weights):
    """Pixel by pixel: each is a tent of the width of two cells."""
    batch, queries, heads, _, points = weights.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1]).to(value)
    for b, q, h in torch.cartesian_prod(
        torch.arange(batch), torch.arange(queries), torch.arange(heads)
    ).tolist():
        first = 0
        for i, (height, width) in enumerate(sizes):
            for p in range(points):
                x, y = locations[b, q, h, i, p].tolist()
                for row in range(height):
                    for column in range(width):
                        tent = max(0, 1 - abs(x * width - column - 0.5))
                        tent *= max(0, 1 - abs(y * height - row - 0.5))
                        cell = value[b, first + row * width + column, h]
                        out[b, q, h] += weights[b, q, h, i, p] * tent * cell
            first += height * width
    return out.flatten(2)


@pytest.mark.parametrize('levels', [1, 3])
def test_sampling_is_what_the_formula_says(levels):
    inputs = attention_inputs(levels, points=2)
    torch.testing.assert_close(
        deformable_attention.sample(*inputs), attention_formula(*inputs)
    )


def test_mmcvs_operator_gets_what_it_asks_for():
    """Of mmcv its own PyTorch form stands in for what is compiled."""
    ops = pytest.importorskip(
        'mmcv.ops.multi_scale_deform_attn', reason='mmcv without operators'
    )

    class Operator:
        @staticmethod
        def apply(value, shapes, begins, locations, weights, step):
            assert len(value) % step == 0
            areas = shapes.prod(1).tolist()
            assert begins.tolist() == [0, areas[0], areas[0] + areas[1]]
            assert sum(areas) == value.shape[1]
            return ops.multi_scale_deformable_attn_pytorch(
                value, shapes, locations, weights
            )

    inputs = attention_inputs()
    torch.testing.assert_close(
        deformable_attention._sample_by(Operator, *inputs),
        deformable_attention.sample(*inputs),
    )


class OnGPU(torch.Tensor):
    """On the CPU, but says that it is not."""

    is_cuda = True


@pytest.mark.parametrize(
    'why',
    [None, 'CPU', 'compiling', 'tracing', 'deterministic', 'empty batch'],
)
def test_where_mmcvs_operator_is_called(why, monkeypatch):
    module, called = deformable_attention, []
    monkeypatch.setattr(module, '_find_operator', lambda: 'operator')
    monkeypatch.setattr(
        module,
        '_sample_by',
        lambda operator, *args: (
            called.append(operator) or module.sample(*args)
        ),
    )
    if why == 'compiling':
        monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    value = torch.randn(0 if why == 'empty batch' else 2, 8, 2, 3)

    def attend(value):
        if why != 'CPU':
            value = value.as_subclass(OnGPU)
        shape = (len(value), 8, 2, 1, 4)
        out = module.deformable_attention(
            value,
            [(2, 4)],
            [(2, 4)],
            torch.zeros(*shape, 2),
            torch.ones(shape),
        )
        return out.as_subclass(torch.Tensor)

    torch.use_deterministic_algorithms(why == 'deterministic')
    try:
        if why == 'tracing':
            torch.jit.trace(attend, value, check_trace=False)
        else:
            attend(value)
    finally:
        torch.use_deterministic_algorithms(False)
    assert called == (['operator'] if why is None else [])


def test_where_a_query_looks():
    """At its own cell of a 2 x 4 map, and offsets are cells of the level."""
    offsets = torch.zeros(1, 8, 1, 2, 1, 2)
    offsets[0, 5, 0, 1, 0] = torch.tensor([3.0, -0.5])
    found = deformable_attention._locations(
        [(2, 4)], [(4, 8), (5, 10)], offsets
    ).squeeze()
    cells = [(x / 8, y / 4) for y in (1, 3) for x in (1, 3, 5, 7)]
    expected = torch.tensor(cells)[:, None].repeat(1, 2, 1)
    expected[5, 1] += torch.tensor([0.3, -0.1])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_places_are_not_rounded_to_half_precision(dtype):
    """On a map of 1 x 600 bfloat16 would be a cell off and more."""
    value = torch.arange(600.0).view(1, 600, 1, 1).to(dtype)
    out = deformable_attention.deformable_attention(
        value,
        [(1, 600)],
        [(1, 600)],
        torch.zeros(1, 600, 1, 1, 1, 2, dtype=dtype),
        torch.ones(1, 600, 1, 1, 1, dtype=dtype),
    )
    assert out.dtype == dtype
    torch.testing.assert_close(out.flatten(), value.flatten())


@pytest.mark.gpu
@pytest.mark.parametrize('batch', [1, 3])
def test_a_gpu_gives_what_a_cpu_does(batch):
    """Outputs and gradients, by mmcv's operator where it is compiled."""
    sizes = [(5, 7), (3, 4), (1, 2)]
    module = deformable_attention.DeformableAttention(12, 2, 3).double()
    for linear in (module.sampling_offsets, module.attention_weights):
        nn.init.normal_(linear.weight, std=0.2)
    query = torch.randn(batch, 6, 12, dtype=torch.float64)
    value = torch.randn(batch, 49, 12, dtype=torch.float64)

    def run(device):
        its = copy.deepcopy(module).to(device)
        inputs = [t.to(device).requires_grad_() for t in (query, value)]
        out = its(inputs[0], [(2, 3)], inputs[1], sizes)
        grads = torch.autograd.grad(
            out.square().sum(), [*inputs, *its.parameters()]
        )
        return [t.cpu() for t in (out.detach(), *grads)]

    torch.testing.assert_close(run('cuda'), run('cpu'))
