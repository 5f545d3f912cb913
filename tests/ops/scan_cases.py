"""Inputs for the scan, what it has to give for them, and how exactly."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vcmamba_mm.ops import multi_directional_scan

NAMES = ('x', 'delta', 'A', 'B', 'C', 'D', 'direction_B')
PARAM_ORDERS = ('raster', 'path')
# Relative to a value, and relative to the largest value of its tensor. The
# scan computes in float32, or in float64 if x is; a result in half precision
# is rounded once.
TOLERANCES = {
    torch.float64: (1e-11, 1e-11),
    torch.float32: (5e-6, 5e-6),
    torch.bfloat16: (2**-8, 5e-6),
    torch.float16: (2**-11, 5e-6),
}


def make_inputs(
    batch=2, height=5, width=8, channels=6, states=3, dtype=torch.float64
):
    """The seven tensors, random, that require gradients."""
    length = height * width
    tensors = (
        torch.randn(batch, length, channels),
        torch.rand(batch, length, channels) * 2,
        -torch.rand(channels, states) * 4,
        torch.randn(batch, length, states),
        torch.randn(batch, length, states),
        torch.randn(channels),
        torch.randn(5, states),
    )
    return [t.to(dtype).requires_grad_() for t in tensors]


def run_with_grads(inputs, grad_y, size, **kwargs):
    """y, and the gradients of all the inputs."""
    y = multi_directional_scan(*inputs, *size, **kwargs)
    return y.detach(), *torch.autograd.grad(y, inputs, grad_y.to(y))


class Case(NamedTuple):
    """Inputs exact in ``dtype``, and the specification's results for them.

    All tensors are float64.
    """

    size: tuple[int, int]
    options: dict[str, str | int]  # param_order, num_paths, snake
    inputs: list[Tensor]
    grad_y: Tensor
    expected: tuple[Tensor, ...]

    @classmethod
    def of(cls, inputs, size, param_order, dtype=torch.float32, **paths):
        grad_y = torch.randn_like(inputs[0])
        *inputs, grad_y = (
            t.detach().to(dtype).double() for t in (*inputs, grad_y)
        )
        inputs = [t.requires_grad_() for t in inputs]
        options = dict(param_order=param_order, **paths)
        expected = run_with_grads(
            inputs, grad_y, size, **options, backend='reference'
        )
        return cls(size, options, inputs, grad_y, expected)

    def check(self, backend, device, dtype=torch.float32, layouts=()):
        """Run a backend on the inputs and compare all it gives.

        ``layouts`` may change how inputs and output gradient lie in memory.
        """
        tensors = [
            t.detach().to(device, dtype) for t in (*self.inputs, self.grad_y)
        ]
        if layouts:
            tensors = [layout(t) for layout, t in zip(layouts, tensors)]
        *inputs, grad_y = tensors
        results = run_with_grads(
            [t.requires_grad_() for t in inputs],
            grad_y,
            self.size,
            **self.options,
            backend=backend,
        )
        for result in results:
            assert result.dtype == dtype
        assert_close(results, self.expected)


def assert_close(results, expected):
    """Compare y and gradients, each as exactly as its dtype allows."""
    for name, result, reference in zip(('y', *NAMES), results, expected):
        rtol, atol = TOLERANCES[result.dtype]
        torch.testing.assert_close(
            result.double().cpu(),
            reference,
            rtol=rtol,
            atol=atol * float(reference.abs().max()),
            msg=lambda text, name=name: f'{name}: {text}',
        )


@cache
def random_case(
    param_order,
    batch,
    height,
    width,
    channels,
    states,
    dtype=torch.float32,
    **paths,
):
    """A case that several tests or backends share."""
    inputs = make_inputs(batch, height, width, channels, states)
    return Case.of(inputs, (height, width), param_order, dtype, **paths)
