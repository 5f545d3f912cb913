"""What PyTorch offers around a model: it works, and changes no result."""

import pytest
import torch
import torch.distributed as dist
from conftest import GOLDEN, TINY, needs_torch
from torch import nn
from torch.export import Dim
from torch.nn.parallel import DistributedDataParallel

from vcmamba_mm import (
    MambaVision,
    PlainMamba,
    PlainMambaAdapter,
    VCMamba,
    VMamba,
)
from vcmamba_mm.ops import available_backends

WHY_NO_TRITON = available_backends()['triton']
BACKENDS = [
    'torch',
    pytest.param(
        'triton',
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                WHY_NO_TRITON is not None, reason=str(WHY_NO_TRITON)
            ),
        ],
    ),
]


def tiny(**kwargs):
    """With layer scales that let the ffns be seen."""
    return VCMamba(
        **dict(arch=TINY, img_size=64, layer_scale_init_value=1.0, **kwargs)
    )


def tiny_vmamba(**kwargs):
    arch = dict(embed_dims=(8, 12), depths=(0, 1), expand=1.5)
    return VMamba(arch, **kwargs)


def tiny_mambavision(**kwargs):
    """A scan and attention, in windows that 64 pixels do not fill."""
    arch = dict(
        embed_dims=(8,),
        depths=(2,),
        stem_dims=8,
        num_heads=(2,),
        layer_scale=1.0,
    )
    return MambaVision(arch, **dict(dict(window_size=(6,)), **kwargs))


def mambavision_of_maps():
    return tiny_mambavision(window_size='map')


def tiny_plainmamba(**kwargs):
    arch = dict(embed_dims=8, depth=1, stem_convs=1, extra_conv=True)
    return PlainMamba(arch, img_size=64, **kwargs)


def tiny_adapter():
    arch = dict(embed_dims=8, depth=1, stem_convs=1, extra_conv=True)
    return PlainMambaAdapter(
        dict(arch, num_heads=2),
        interactions=(1,),
        prior_dims=4,
        img_size=64,
        layer_scale_init_value=1.0,
        out_indices=(0, 3),
    )


families = pytest.mark.parametrize(
    'build',
    [tiny, tiny_vmamba, tiny_mambavision, tiny_plainmamba],
    ids=['vcmamba', 'vmamba', 'mambavision', 'plainmamba'],
)
of_dynamic_sizes = pytest.mark.parametrize(
    'build',
    [tiny, tiny_vmamba, mambavision_of_maps, tiny_plainmamba],
    ids=['vcmamba', 'vmamba', 'mambavision', 'plainmamba'],
)


def gradients(model, x):
    model.zero_grad()
    model(x)[0].square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.fixture(scope='module')
def small():
    """VCMamba-S and what it gives for a picture."""
    torch.manual_seed(0)
    model = VCMamba('s', layer_scale_init_value=1.0).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        return model, x, model(x)[0]


@pytest.fixture
def _forget_compiled():
    yield
    torch._dynamo.reset()


def test_vcmamba_s_compiles_without_graph_break(small, _forget_compiled):
    model, x, expected = small
    with torch.no_grad():
        # It traces as every backend does; tests/deploy/test_fuse.py runs code.
        out = torch.compile(model, fullgraph=True, backend='aot_eager')(x)[0]
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    'dtype',
    [
        None,
        pytest.param(
            torch.bfloat16,
            marks=needs_torch('2.8', 'compiled batch norm rounds otherwise'),
        ),
    ],
    ids=str,
)
@families
def test_compiled_training_has_the_same_gradients(
    build, dtype, _forget_compiled
):
    model, x = build(), torch.randn(2, 3, 64, 64)
    if dtype is None:  # what rounding leaves of zeros is no matter then
        model, x = model.double(), x.double()
    # aot_eager traces both passes as every backend does, but emits no code
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.autocast('cpu', dtype, enabled=dtype is not None):
        expected, results = gradients(model, x), gradients(compiled, x)
    for result, gradient in zip(results, expected):
        torch.testing.assert_close(result, gradient)


@needs_torch('2.8', 'sizes of maps cannot be symbolic')
@of_dynamic_sizes
def test_compiled_once_for_all_sizes(build, _forget_compiled):
    model = build().eval()
    compiled = torch.compile(
        model, fullgraph=True, backend='aot_eager', dynamic=True
    )
    with torch.no_grad():
        compiled(torch.randn(2, 3, 64, 96))
        with torch.compiler.set_stance('fail_on_recompile'):
            for height, width in ((64, 96), (96, 64), (64, 64), (97, 130)):
                x = torch.randn(3, 3, height, width)
                torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    'size', [(48, 72), (97, 52)], ids=['whole windows', 'padded windows']
)
def test_windows_compile_without_graph_break(size, _forget_compiled):
    model = tiny_mambavision().eval()
    x = torch.randn(2, 3, *size)
    compiled = torch.compile(
        model, fullgraph=True, backend='aot_eager', dynamic=False
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_vcmamba_s_exports(small):
    model, x, expected = small
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x)[0], expected)


@needs_torch('2.8', 'sizes of maps cannot be symbolic')
@pytest.mark.parametrize(
    'build',
    # The last one has the layers of PlainMamba, too.
    [tiny, tiny_vmamba, mambavision_of_maps, tiny_adapter],
)
def test_exports_with_dynamic_batch_and_size(build):
    model = build().eval()
    # Maps of height or width 1 (up to 32 pixels) are a case of their own:
    # torch.export treats all sizes but 0 and 1 alike.
    size = dict(min=33, max=1024)
    exported = torch.export.export(
        model,
        (torch.randn(2, 3, 64, 96),),
        dynamic_shapes=(
            {
                0: Dim('batch'),
                2: Dim('height', **size),
                3: Dim('width', **size),
            },
        ),
    ).module()
    for shape in ((1, 64, 64), (2, 64, 96), (3, 96, 64), (2, 97, 321)):
        x = torch.randn(shape[0], 3, *shape[1:])
        with torch.no_grad():
            torch.testing.assert_close(exported(x), model(x))


@pytest.fixture(scope='module')
def trained():
    """The recorded weights; their activations grow with the input's cube."""
    weights = dict(type='Pretrained', checkpoint=GOLDEN / 'tiny_release.pth')
    model = VCMamba(arch=TINY, img_size=160, init_cfg=weights)
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize(
    'dtype, rounding',
    [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)],
    ids=str,
)
def test_autocast_with_large_activations(trained, dtype, rounding):
    """100 images, of 1 to 1000 standard deviations.

    A layer rounds its input, its weights and its output. A rounding errs by
    up to ``rounding``, evenly, which is ``rounding`` / sqrt(3) in the mean
    square; three of them make ``rounding``, and the layers' errors are
    independent.
    """
    layers = [
        m for m in trained.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    scan_results = []
    mixer = trained.stages[-1].blocks[-1].mixer
    handle = mixer.norm.register_forward_pre_hook(
        lambda norm, args: scan_results.append(args[0].abs().max())
    )
    for scale in torch.logspace(0, 3, 10):
        x = scale * torch.randn(10, 3, 64, 64)
        with torch.no_grad():
            expected = trained(x)[0].flatten(1)
            with torch.autocast('cpu', dtype):
                out = trained(x)[0].flatten(1)
        assert out.isfinite().all()
        error = (out - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < rounding * len(layers) ** 0.5
    handle.remove()
    assert max(scan_results) > 1e4 * torch.finfo(torch.float16).max


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@families
def test_autocast_training_has_finite_gradients(build, dtype):
    x = 30 * torch.randn(4, 3, 64, 64)
    with torch.autocast('cpu', dtype):
        assert all(g.isfinite().all() for g in gradients(build(), x))


def _model_and_images():
    """Statistics of a batch would differ between its parts: eval mode."""
    torch.manual_seed(0)
    return tiny().double().eval(), torch.randn(4, 3, 64, 64).double()


def _train_on_part(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    model, x = _model_and_images()
    part = x.chunk(2)[rank]
    torch.save(
        gradients(DistributedDataParallel(model), part), f'{folder}/{rank}.pth'
    )
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(_train_on_part, (tmp_path,), nprocs=2)
    expected = gradients(*_model_and_images())
    for rank in range(2):
        results = torch.load(tmp_path / f'{rank}.pth')
        for result, gradient in zip(results, expected):
            torch.testing.assert_close(result, gradient, rtol=1e-9, atol=1e-12)


@families
def test_functional_call(build):
    model, other = build().double().eval(), build().double().eval()
    x = torch.randn(2, 3, 64, 64).double()
    expected = gradients(other, x)
    other.zero_grad()
    parameters = dict(other.named_parameters())
    out = torch.func.functional_call(model, parameters, (x,))[0]
    out.square().mean().backward()
    for parameter, gradient in zip(other.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient)


@families
def test_functional_gradients_of_the_reference(build):
    """Not of the others: PyTorch's registered operators have none."""
    model = build(mixer_cfg=dict(backend='reference')).double().eval()
    x = torch.randn(2, 3, 64, 64).double()
    expected = gradients(model, x)
    results = torch.func.grad(
        lambda parameters: (
            torch.func.functional_call(model, parameters, (x,))[0]
            .square()
            .mean()
        )
    )({name: p.detach() for name, p in model.named_parameters()})
    for result, gradient in zip(results.values(), expected):
        torch.testing.assert_close(result, gradient)


@families
def test_gradients_of_each_image_in_float32(build):
    """Without what float32 has of its own on a CPU."""
    model, x = build().eval(), torch.randn(2, 3, 64, 64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, image):
        maps = torch.func.functional_call(model, parameters, (image[None],))
        return maps[0].square().mean()

    results = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, image in enumerate(x):
        expected = gradients(model, image[None])
        for result, gradient in zip(results.values(), expected):
            torch.testing.assert_close(result[i], gradient)


@pytest.mark.parametrize(
    'device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize('backend', BACKENDS)
@families
def test_deterministic_mode_gives_the_same_gradients(build, backend, device):
    torch.set_num_threads(2)
    model = build(mixer_cfg=dict(backend=backend)).to(device)
    x = torch.randn(4, 3, 64, 64, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(model, x), gradients(model, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.gpu
@pytest.mark.parametrize('backend', BACKENDS)
@families
def test_cuda_graph_of_inference(build, backend):
    model = build(mixer_cfg=dict(backend=backend)).double().cuda().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, device='cuda')
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad(), torch.cuda.graph(graph):
        out = model(x)[0]
    for _ in range(3):
        x.normal_()
        graph.replay()
        with torch.no_grad():
            torch.testing.assert_close(out, model(x)[0])


@pytest.mark.gpu
@pytest.mark.parametrize('backend', BACKENDS)
@families
def test_cuda_graph_of_training(build, backend):
    model = build(mixer_cfg=dict(backend=backend)).double().cuda().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, device='cuda')
    expected = [gradients(model, i * x) for i in range(1, 4)]
    graphed = torch.cuda.make_graphed_callables(model, (torch.randn_like(x),))
    for i in range(1, 4):
        for result, gradient in zip(
            gradients(graphed, i * x), expected[i - 1]
        ):
            torch.testing.assert_close(result, gradient)
