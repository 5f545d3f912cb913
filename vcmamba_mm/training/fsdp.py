"""Fully sharded training: weights, gradients and optimizer states in parts."""

from collections.abc import Callable

import torch
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import STRATEGIES
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..checkpoints import (
    check_fit,
    extract_state_dict,
    read_checkpoint,
    write_checkpoint,
)
from ..models.layers import Blocks

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@STRATEGIES.register_module()
class FSDP2Strategy(DDPStrategy):
    """FSDP2 for MMEngine's ``FlexibleRunner``: one shard group for each block.

    MMEngine's own ``FSDPStrategy`` makes every parameter one-dimensional, and
    with that takes the weight decay away from those that a recipe tells apart
    by their dimensions. Here they keep their shape. Checkpoints hold the whole
    weights, as without it; the optimizer's states are under other names, so a
    run that was begun sharded is resumed sharded.

    Args:
        load_weights: Which of two sets of weights ``load_from`` takes, as
            ``checkpoints.take_weights``.

    Raises:
        ImportError: If PyTorch is older than 2.6.
    """

    def __init__(self, *, load_weights: str | None = None, **kwargs) -> None:
        if torch.__version__ < '2.6':
            raise ImportError(
                'FSDP2Strategy needs PyTorch >= 2.6 '
                '(torch.distributed.fsdp.fully_shard), this is '
                f'{torch.__version__}'
            )
        super().__init__(**kwargs)
        self.load_weights = load_weights

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        model = self.convert_model(model.to(get_device()))
        for module in model.modules():
            if isinstance(module, Blocks):
                for block in module:
                    fully_shard(block)
        return fully_shard(model)

    def model_state_dict(self) -> dict:
        return get_model_state_dict(self.model, options=WHOLE)

    def optim_state_dict(self) -> dict:
        return get_optimizer_state_dict(
            self.model, self.optim_wrapper.optimizer, options=WHOLE
        )

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable | None = None,
    ) -> None:
        """Gather on all processes, then write on the first one."""
        checkpoint = dict(extra_ckpt or {}, state_dict=self.model_state_dict())
        checkpoint.setdefault('meta', {})['seed'] = self.seed
        if save_optimizer:
            checkpoint['optimizer'] = self.optim_state_dict()
        if save_param_scheduler:
            checkpoint['param_schedulers'] = self.scheduler_state_dict()
        if callback is not None:
            callback(checkpoint)
        if is_main_process():
            write_checkpoint(checkpoint, filename)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        set_optimizer_state_dict(
            self.model,
            self.optim_wrapper.optimizer,
            state_dict,
            options=WHOLE,
        )

    def load_checkpoint(
        self, filename: str, *, callback: Callable | None = None, **kwargs
    ) -> dict:
        """Load weights; what is in the file runs no code, all keys must fit.

        Raises:
            CheckpointError: If the file cannot be read or does not fit.
        """
        checkpoint = read_checkpoint(filename)
        state_dict = extract_state_dict(
            checkpoint, filename, self.load_weights
        )
        check_fit(self.model, state_dict, filename, load_from=True)
        checkpoint['state_dict'] = state_dict
        if callback is not None:
            callback(checkpoint)
        set_model_state_dict(
            self.model, checkpoint['state_dict'], options=WHOLE
        )
        return checkpoint
