"""What the tests of exported models share."""

import copy

import pytest
import torch

ort = pytest.importorskip('onnxruntime')


def in_float64(model):
    """A copy that computes in float64, its scans by the specification."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if hasattr(module, 'backend'):
            module.backend = 'reference'
    return model


def error(found, expected):
    """The largest difference, relative to the largest value expected."""
    found = torch.as_tensor(found).double()
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 4  # some tests ask for errors
    return ort.InferenceSession(
        path, options, providers=['CPUExecutionProvider']
    )
