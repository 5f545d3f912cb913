import json

import pytest
import torch
from conftest import GOLDEN

from vcmamba_mm.ops.scan_paths import snake_paths

RECORDED = json.loads((GOLDEN / 'scan_orders.json').read_text())


@pytest.mark.parametrize('size', RECORDED)
def test_paths_are_those_of_the_release(size):
    height, width = map(int, size.split('x'))
    paths = snake_paths(height, width)
    assert paths.order.tolist() == RECORDED[size]['orders']
    assert paths.inverse.tolist() == RECORDED[size]['inverse']
    assert paths.direction.tolist() == RECORDED[size]['directions']


@pytest.mark.parametrize('height, width', [(3, 5), (8, 8), (1, 4), (6, 1)])
def test_each_step_goes_to_a_neighbour_in_its_direction(height, width):
    paths = snake_paths(height, width)
    step = torch.tensor([[0, 0], [0, 1], [0, -1], [-1, 0], [1, 0]])
    for order, direction in zip(paths.order, paths.direction):
        assert sorted(order.tolist()) == list(range(height * width))
        position = torch.stack([order // width, order % width], dim=1)
        assert torch.equal(position.diff(dim=0), step[direction[1:]])
        assert direction[0] == 0


def test_cached_and_usable_for_training_after_inference():
    with torch.inference_mode():
        paths = snake_paths(4, 9)
    assert paths is snake_paths(4, 9)
    x = torch.randn(36, requires_grad=True)
    x[paths.order[1]].square().sum().backward()
    assert x.grad is not None
