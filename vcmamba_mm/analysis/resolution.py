"""Time of a model against the size of its input."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn

from .timing import BUFFERS, Call, Timing, time_side_by_side


class SizeTiming(NamedTuple):
    """Attributes:
    shape: Height and width of the input in pixels.
    batch_size: Images of a batch.
    one: Time of a single image.
    batch: Time of a batch; the same as ``one`` if a batch is one image.
    """

    shape: tuple[int, int]
    batch_size: int
    one: Timing
    batch: Timing

    @property
    def throughput(self) -> float:
        """Images per second, in batches."""
        return 1000 * self.batch_size / self.batch.median

    @property
    def ms_per_megapixel(self) -> float:
        """Time of a million pixels, in batches."""
        height, width = self.shape
        return 1e6 * self.batch.median / (self.batch_size * height * width)

    def as_dict(self) -> dict:
        """For JSON."""
        one, batch = self.one.as_dict(), self.batch.as_dict()
        return dict(self._asdict(), one=one, batch=batch)


def time_against_size(
    model: nn.Module,
    shapes: list[tuple[int, int]],
    batch_size: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    channels: int = 3,
    **rules: float,
) -> list[SizeTiming]:
    """Time inference at several sizes, all of them in turns.

    Batches have about the same number of pixels at all sizes, which keeps
    memory bounded and the device equally busy.

    Args:
        model: In eval mode; called with ``mode='tensor'``. It is moved.
        shapes: Heights and widths in pixels.
        batch_size: Images of a batch of the first shape.
        device: 'cpu' or 'cuda'.
        dtype: Other than float32: that of autocast.
        channels: Of an image.
        **rules: ``rounds``, ``warm_ups`` and ``sample_seconds`` of
            ``vcmamba_mm.analysis.timing.time_side_by_side``.
    """
    model.to(device)
    autocast = (
        nullcontext()
        if dtype == torch.float32
        else torch.autocast(device, dtype)
    )

    def call(number: int, shape: tuple[int, int]) -> Call:
        inputs = [
            torch.randn(number, channels, *shape, device=device)
            for _ in range(BUFFERS)
        ]
        return lambda i: model(inputs[i], mode='tensor')

    height, width = shapes[0]
    pixels = batch_size * height * width
    sizes = [max(1, round(pixels / (h * w))) for h, w in shapes]
    wanted = {(s, n) for s, size in zip(shapes, sizes) for n in (1, size)}
    calls = {(s, n): call(n, s) for s, n in sorted(wanted)}
    with torch.inference_mode(), autocast:
        timings = time_side_by_side(calls, device, **rules)
    return [
        SizeTiming(s, size, timings[s, 1], timings[s, size])
        for s, size in zip(shapes, sizes)
    ]
