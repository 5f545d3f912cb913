"""Optimizer wrappers: learning rates by layer, mixed precision on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import (
    AmpOptimWrapper,
    DefaultOptimWrapperConstructor,
    OptimWrapper,
)
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, with smaller learning rates in earlier layers.

    A parameter of layer i of n gets lr * layer_decay_rate ** (n - 1 - i): what
    comes after the backbone, layer n - 1, gets lr itself. mmpretrain's
    ``LearningRateDecayOptimWrapperConstructor`` does the same for classifiers,
    this one for every model whose ``backbone`` has ``get_layer_depth``.
    ``paramwise_cfg`` takes ``layer_decay_rate``, and all that MMEngine's does.

    Raises:
        ValueError: If ``layer_decay_rate`` is not in (0, 1].
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if rate is None or not 0 < rate <= 1:
            raise ValueError(
                'optim_wrapper.paramwise_cfg.layer_decay_rate must be above 0 '
                f'and at most 1, got {rate}'
            )

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs
    ) -> None:
        super().add_params(params, module, prefix, **kwargs)
        if prefix:  # it calls itself for the submodules
            return
        names = {p: name for name, p in module.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            layer, num_layers = module.backbone.get_layer_depth(
                names[parameter], 'backbone.'
            )
            group['lr'] = group.get('lr', self.base_lr) * (
                self.paramwise_cfg['layer_decay_rate']
                ** (num_layers - 1 - layer)
            )


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper``, which refuses to work on a CPU, there.

    Args:
        loss_scale: 'dynamic', a fixed scale, or arguments of
            ``torch.amp.GradScaler``.
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
