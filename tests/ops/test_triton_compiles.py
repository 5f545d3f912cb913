"""The kernels compiled for Hopper, without a GPU.

The interpreter checks no types and knows no registers; the compiler does.
"""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from vcmamba_mm.ops import available_backends

reason = available_backends()['triton']
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

SCRIPT = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vcmamba_mm.ops import triton_scan

kernel = getattr(triton_scan, sys.argv[1])
constants = dict(STATES=16, BN=16, RASTER=True, BE=int(sys.argv[2]))
if 'CHUNK' in kernel.arg_names:
    constants['CHUNK'] = triton_scan.CHUNK
integers = ('length', 'channels')
signature = {
    name: 'constexpr' if name in constants
    else 'i32' if name in integers or name.startswith('s_')
    else '*i64' if name in ('order', 'direction')
    else '*bf16' if name in ('x', 'delta', 'B', 'C', 'y', 'grad_y')
    else '*fp32' for name in kernel.arg_names
}
positions = {(kernel.arg_names.index(n),): v for n, v in constants.items()}
source = ASTSource(kernel, signature, positions)
compiled = compile(source, target=GPUTarget('cuda', 90, 32),
                   options=dict(num_warps=1, num_stages=1))
assert '.target sm_90' in compiled.asm['ptx']
print(compiled.asm['ptx'].count('.local'))
"""


@pytest.mark.parametrize(
    'kernel, tile', [('_forward_kernel', 32), ('_backward_kernel', 16)]
)
def test_compiles_without_local_memory(kernel, tile, tmp_path):
    pytest.importorskip('triton.backends.nvidia')
    process = subprocess.run(
        [sys.executable, '-c', SCRIPT, kernel, str(tile)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'TRITON_INTERPRET': '0',
            'TRITON_CACHE_DIR': str(tmp_path),
            'PYTHONPATH': str(ROOT),
        },
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.strip() == '0'
