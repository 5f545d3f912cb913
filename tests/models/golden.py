"""What the tests of the families' released behaviour share."""

import json
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT
from torch import nn

from vcmamba_mm.checkpoints import (
    from_released,
    read_checkpoint,
    to_released,
    write_checkpoint,
)

GOLDEN = ROOT / 'tests/fixtures/golden'


def recorded(family: str, name: str = 'tiny_io.npz') -> dict:
    """Recorded tensors."""
    arrays = np.load(GOLDEN / family / name)
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def recorded_json(family: str, name: str) -> dict:
    return json.loads((GOLDEN / family / name).read_text())


def released_weights(family: str, variant: str) -> dict:
    """All keys of a released classifier, without memory."""
    return {
        key: torch.empty(shape, device='meta')
        for key, shape in recorded_json(family, 'released_keys.json')[variant]
    }


def changed(source: Path, folder: Path, change) -> Path:
    """A copy of a released file, whose weights ``change`` has changed."""
    checkpoint = read_checkpoint(source)
    change(checkpoint.get('model') or checkpoint['state_dict'])
    path = folder / 'changed.pth'
    write_checkpoint(checkpoint, path)
    return path


def shapes(weights: dict) -> list:
    return [(key, tuple(weight.shape)) for key, weight in weights.items()]


def check_there_and_back(family: str, variant: str, model: nn.Module) -> None:
    """Every released key gets its place in a classifier of ours, and back."""
    released = released_weights(family, variant)
    ours = from_released(released)
    assert sorted(shapes(ours)) == sorted(shapes(model.state_dict()))
    assert shapes(to_released(ours)) == shapes(released)


class Classifier(nn.Module):
    """With the names that classifiers of MMPretrain have."""

    def __init__(self, backbone: nn.Module, neck: nn.Module, classes: int):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        dims = backbone.embed_dims[-1]
        self.head = nn.ModuleDict(dict(fc=nn.Linear(dims, classes)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head.fc(self.neck(self.backbone(x))[0])

    def load(self, path) -> 'Classifier':
        checkpoint = read_checkpoint(path)
        weights = checkpoint.get('state_dict') or checkpoint['model']
        self.load_state_dict(from_released(weights, path))
        return self
