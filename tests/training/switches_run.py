"""tools/train.py, several times in the same processes, and what it did.

usage: torchrun ... switches_run.py JOBS OUT, where JOBS is a JSON file with
the arguments of each run by name. OUT gets NAME.json from the first process.
"""

import gc
import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

import torch
from torch._dynamo.utils import counters
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.optim.optimizer import register_optimizer_step_post_hook

from vcmamba_mm.models.base import BaseBackbone


class Seen:
    """What the forward passes of the convolutions and blocks were like."""

    def __init__(self) -> None:
        self.calls = Counter()
        self.dtypes = set()
        self.decays = set()
        self.channels_last = True
        self.backbone = None
        self.blocks = set()

    def enter(self, module, args) -> None:
        if not module.training:  # what counts FLOPs
            return
        if isinstance(module, BaseBackbone):
            self.calls['forward'] += 1
            self.blocks = {b for s in module.stages for b in s.blocks}
        elif module in self.blocks:
            self.calls['block'] += 1

    def leave(self, module, args, output) -> None:
        if not module.training:
            return
        if isinstance(module, BaseBackbone):
            self.backbone = module
        elif module in self.blocks and output.dim() == 4:
            self.channels_last &= output.is_contiguous(
                memory_format=torch.channels_last
            )
        elif isinstance(module, torch.nn.Conv2d):
            self.dtypes.add(str(output.dtype))
            # On a CPU maps of float32 lie like that without the switch too.
            self.channels_last &= module.weight.is_contiguous(
                memory_format=torch.channels_last
            )

    def step(self, optimizer, args, kwargs) -> None:
        self.calls['step'] += 1
        self.decays.update(g['weight_decay'] for g in optimizer.param_groups)


def run(args: list[str]) -> dict:
    seen = Seen()
    counters.clear()
    handles = [register_optimizer_step_post_hook(seen.step)]
    # Dynamo would look into the hooks as well.
    if not any(arg.startswith('compile') for arg in args):
        handles += [
            register_module_forward_pre_hook(seen.enter),
            register_module_forward_hook(seen.leave),
        ]
    sys.argv = ['tools/train.py', *args]
    runpy.run_path('tools/train.py', run_name='__main__')
    for handle in handles:
        handle.remove()
    weights = list(seen.backbone.parameters()) if seen.backbone else []
    return dict(
        steps=seen.calls['step'],
        forwards=seen.calls['forward'],
        blocks=seen.calls['block'],
        dtypes=sorted(seen.dtypes),
        channels_last=seen.channels_last,
        graphs=counters['stats']['unique_graphs'],
        sharded=bool(weights)
        and all(hasattr(w, 'full_tensor') for w in weights),
        decays=sorted(seen.decays),
    )


def main() -> None:
    gc.freeze()  # see tests/conftest.py
    jobs = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    for name, args in jobs.items():
        facts = run([*args, f'experiment_name={name}'])
        if os.environ['RANK'] == '0':
            (out / f'{name}.json').write_text(json.dumps(facts))


if __name__ == '__main__':
    main()
