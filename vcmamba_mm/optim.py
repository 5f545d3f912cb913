"""Learning rates that differ from layer to layer."""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, with smaller learning rates in earlier layers.

    A parameter of layer i of n gets lr * layer_decay_rate ** (n - 1 - i): what
    comes after the backbone, layer n - 1, gets lr itself. mmpretrain's
    ``LearningRateDecayOptimWrapperConstructor`` does the same for classifiers,
    this one for every model whose ``backbone`` has ``get_layer_depth``.

    Args:
        optim_wrapper_cfg: As in MMEngine.
        paramwise_cfg: ``layer_decay_rate``, and all that MMEngine's takes.

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
