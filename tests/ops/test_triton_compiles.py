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

# Under autocast: x, delta, B and C in half precision, parts of others.
SCRIPT = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vcmamba_mm.ops import triton_kernels, triton_scan

STRIDES = dict(s_x=3, s_g=3, s_delta=4, s_B=4, s_C=4, s_y=3, s_gx=2)
for name in ('walk', 'backward'):
    kernel = getattr(triton_kernels, f'{name}_kernel')
    make = (triton_scan.forward_sizes if name == 'walk'
            else triton_scan.backward_sizes)
    for states, paths, narrow in (
        (1, 1, False), (8, 1, False), (16, 1, False), (16, 4, False),
        (16, 4, True), (32, 1, False),
    ):
        options = dict(
            make(states, paths, narrow, False).constants,
            PATHS=paths, FOLLOW=paths == 1,
            SOFTPLUS=paths == 1, SPLIT=not narrow, ADD=narrow)
        if name == 'walk':
            options |= dict(WHAT='y')
        launch = {k: options.pop(k) for k in ('num_warps', 'enable_fp_fusion')}
        signature, constants, attributes = {}, {}, {}
        for i, arg in enumerate(kernel.arg_names):
            if arg in options:
                signature[arg] = 'constexpr'
                constants[i,] = options[arg]
            elif arg in STRIDES:
                signature[arg] = ('i32',) * STRIDES[arg]
                if arg not in ('s_y', 's_gx'):  # channels lie side by side
                    last = STRIDES[arg] - 1
                    signature[arg] = ('i32',) * last + ('constexpr',)
                    constants[i, last] = 1
            else:
                signature[arg] = (
                    '*i32' if arg == 'order'
                    else '*bf16' if arg in ('x', 'delta', 'B', 'C')
                    else 'i32' if arg.startswith('s_')
                    or arg in ('length', 'channels', 'steps') else '*fp32')
                if arg not in ('length', 'steps'):
                    attributes[i,] = [['tt.divisibility', 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = compile(
            source, target=GPUTarget('cuda', 90, 32), options=launch)
        path = f'{sys.argv[1]}/{name}-{states}-{paths}-{narrow}.cubin'
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
            'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]),
        },
    )
    assert process.returncode == 0, process.stderr[-2000:]
    kernels = sorted(tmp_path.glob('*.cubin'))
    assert len(kernels) == 12
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
