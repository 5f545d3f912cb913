import json

import pytest
import torch
from conftest import GOLDEN

from vcmamba_mm.ops.scan_paths import PATHS, scan_paths

RECORDED = json.loads((GOLDEN / 'scan_orders.json').read_text())


@pytest.mark.parametrize('size', RECORDED)
def test_paths_are_those_of_the_release(size):
    height, width = map(int, size.split('x'))
    paths = scan_paths(height, width)
    assert paths.order.tolist() == RECORDED[size]['orders']
    assert paths.inverse.tolist() == RECORDED[size]['inverse']
    assert paths.direction.tolist() == RECORDED[size]['directions']


@pytest.mark.parametrize('height, width', [(3, 5), (8, 8), (1, 4), (6, 1)])
def test_each_step_goes_to_a_neighbour_in_its_direction(height, width):
    paths = scan_paths(height, width)
    step = torch.tensor([[0, 0], [0, 1], [0, -1], [-1, 0], [1, 0]])
    for order, direction in zip(paths.order, paths.direction):
        assert sorted(order.tolist()) == list(range(height * width))
        position = torch.stack([order // width, order % width], dim=1)
        assert torch.equal(position.diff(dim=0), step[direction[1:]])
        assert direction[0] == 0


@pytest.mark.parametrize('height, width', [(3, 5), (2, 2), (1, 4), (6, 1)])
def test_lines_in_one_direction(height, width):
    paths = scan_paths(height, width, snake=False)
    tokens = torch.arange(height * width)
    columns = tokens.view(height, width).t()
    assert torch.equal(paths.order[0], tokens)
    assert torch.equal(paths.order[2], columns.flatten())
    begin, right, left, up, down = range(5)
    rows = torch.full((height, width), right)
    rows[:, 0] = down
    assert torch.equal(paths.direction[0, 1:], rows.flatten()[1:])
    columns = torch.full((width, height), down)
    columns[:, 0] = right
    assert torch.equal(paths.direction[2, 1:], columns.flatten()[1:])
    opposite = torch.tensor([begin, left, right, down, up])
    for p in (0, 2):
        assert torch.equal(paths.order[p + 1], paths.order[p].flip(0))
        steps = paths.direction[p, 1:]
        assert torch.equal(paths.direction[p + 1, 1:], opposite[steps.flip(0)])
    for order, inverse, direction in zip(*paths):
        assert torch.equal(order[inverse], tokens)
        assert direction[0] == begin


@pytest.mark.parametrize('snake', [True, False])
@pytest.mark.parametrize('num_paths', [1, 2, 3])
def test_fewer_are_the_first_ones(num_paths, snake):
    paths = scan_paths(3, 4, paths=PATHS[:num_paths], snake=snake)
    for some, all_ in zip(paths, scan_paths(3, 4, snake=snake)):
        assert torch.equal(some, all_[:num_paths])


def test_cached_and_usable_for_training_after_inference():
    with torch.inference_mode():
        paths = scan_paths(4, 9)
    assert paths is scan_paths(4, 9)
    x = torch.randn(36, requires_grad=True)
    x[paths.order[1]].square().sum().backward()
    assert x.grad is not None
