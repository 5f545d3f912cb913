"""Running statistics become those of all processes."""

import multiprocessing
from types import SimpleNamespace

import torch
import torch.distributed as dist
from mmengine.hooks import EMAHook
from torch import nn

from vcmamba_mm import AverageBuffersHook


def average(rank, folder):
    dist.init_process_group(
        'gloo', f'file://{folder}/meeting', rank=rank, world_size=2
    )
    model = nn.BatchNorm1d(3)
    hook = EMAHook()
    runner = SimpleNamespace(model=model, hooks=[hook])
    hook.before_run(runner)
    # means 1 and 4, and 10 times as much of the average
    model.running_mean.fill_(1.0 + 3 * rank)
    hook.ema_model.module.running_mean.fill_(10.0 + 30 * rank)
    model.num_batches_tracked.fill_(5)
    AverageBuffersHook().after_train_epoch(runner)
    found = model.state_dict(), hook.ema_model.module.running_mean
    torch.save(found, f'{folder}/{rank}.pth')


def test_two_processes(tmp_path):
    fork = multiprocessing.get_context('fork')  # packages are there
    processes = [
        fork.Process(target=average, args=(rank, tmp_path))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in range(2):
        weights, of_average = torch.load(tmp_path / f'{rank}.pth')
        assert (weights['running_mean'] == 2.5).all()
        assert (of_average == 25).all()
        assert weights['num_batches_tracked'] == 5


def test_one_process():
    model = nn.BatchNorm1d(3)
    AverageBuffersHook().after_train_epoch(
        SimpleNamespace(model=model, hooks=[])
    )
    assert (model.running_var == 1).all()
