"""What goes wrong, for the configs of tests."""

import time

import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS


@HOOKS.register_module()
class PoisonHook(Hook):
    """The input of the model is NaN in process 1 in iteration ``at``."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_run(self, runner) -> None:
        def forward(module, args):
            if get_rank() == 1 and runner.iter == self.at and module.training:
                return torch.full_like(args[0], torch.nan)

        runner.model.module.backbone.register_forward_pre_hook(forward)


@TRANSFORMS.register_module()
class Hang(BaseTransform):
    """Hang in process 1 when ``after`` pictures have been read."""

    def __init__(self, after: int) -> None:
        self.after = after

    def transform(self, results: dict) -> dict:
        self.after -= 1
        if self.after < 0 and get_rank() == 1:
            time.sleep(3600)
        return results
