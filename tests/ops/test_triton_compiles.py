"""The kernels compiled for Hopper, without a GPU.

The interpreter checks no types and knows no registers; the compiler does.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from vcmamba_mm.ops import available_backends

reason = available_backends()['triton']
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

# Under autocast: x, B and C in half precision, B and C parts of one tensor.
SCRIPT = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vcmamba_mm.ops import triton_scan

for name in ('forward', 'backward'):
    kernel = getattr(triton_scan, f'_{name}_kernel')
    for states, param_order, num_paths in (
        (1, 'path', 4), (16, 'raster', 4), (16, 'path', 4), (32, 'raster', 4),
        (16, 'raster', 1),
    ):
        options = getattr(triton_scan, name + '_options')(
            states, param_order, num_paths)
        launch = {
            k: options.pop(k)
            for k in ('num_warps', 'num_stages', 'enable_fp_fusion')
        }
        options |= {f's_{t}': 1 for t in ('xe', 'de', 'Bn', 'Cn', 'ge')}
        signature, constants, attributes = {}, {}, {}
        for i, arg in enumerate(kernel.arg_names):
            if arg in options:
                signature[arg] = 'constexpr'
                constants[i,] = options[arg]
                continue
            signature[arg] = (
                '*i64' if arg in ('order', 'direction')
                else '*bf16' if arg in ('x', 'B', 'C')
                else 'i32' if arg.startswith('s_')
                or arg in ('length', 'channels') else '*fp32')
            if not arg.startswith(('s_B', 's_C', 'length')):
                attributes[i,] = [['tt.divisibility', 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = compile(
            source, target=GPUTarget('cuda', 90, 32), options=launch)
        path = f'{sys.argv[1]}/{name}-{states}-{param_order}-{num_paths}.cubin'
        with open(path, 'wb') as file:
            file.write(compiled.asm['cubin'])
"""


def test_kernels_compile_and_keep_their_tiles_in_registers(tmp_path):
    nvidia = pytest.importorskip('triton.backends.nvidia')
    process = subprocess.run(
        [sys.executable, '-c', SCRIPT, tmp_path],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'TRITON_INTERPRET': '0',
            'TRITON_CACHE_DIR': str(tmp_path / 'cache'),
            'PYTHONPATH': str(ROOT),
        },
    )
    assert process.returncode == 0, process.stderr[-2000:]
    kernels = sorted(tmp_path.glob('*.cubin'))
    assert len(kernels) == 10
    cuobjdump = Path(nvidia.__file__).parent / 'bin' / 'cuobjdump'
    for kernel in kernels:
        usage = subprocess.run(
            [cuobjdump, '-res-usage', kernel],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        # What does not fit into registers is spilled to the stack.
        assert ' STACK:0 ' in usage, f'{kernel.stem}: {usage}'
