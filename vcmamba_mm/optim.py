"""Automatic mixed precision without a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper``, which refuses to work on a CPU, there.

    Args:
        loss_scale: 'dynamic', a fixed scale, or arguments of
            :class:`torch.amp.GradScaler`.
        dtype: 'float16' or 'bfloat16'.
        **kwargs: Arguments of MMEngine's ``OptimWrapper``.
    """

    def __init__(
        self,
        loss_scale: str | float | dict = 'dynamic',
        dtype: str = 'float16',
        **kwargs,
    ) -> None:
        OptimWrapper.__init__(self, **kwargs)
        if loss_scale == 'dynamic':
            loss_scale = {}
        fixed = isinstance(loss_scale, float)
        self._scale_update_param = loss_scale if fixed else None
        self.loss_scaler = torch.amp.GradScaler(
            'cpu', **(dict(init_scale=loss_scale) if fixed else loss_scale)
        )
        self.cast_dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and no synchronization while gradients accumulate."""
        with (
            OptimWrapper.optim_context(self, model),
            torch.autocast('cpu', self.cast_dtype),
        ):
            yield
