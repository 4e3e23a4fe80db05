"""A model's parameters as one flat float32 vector: layout, first values, and the way into and out of a module.

The first global model follows from a seed, and every firm computes it itself: so it is made of raw Philox words and
IEEE arithmetic only, which are the same on every machine and in every numpy. No torch at import time: an agent that
knows a layout makes the first model without it.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MisuseError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ParameterShape:
    """One parameter's name in `named_parameters()` and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


Layout = tuple[ParameterShape, ...]


def layout_of(module: "nn.Module") -> Layout:
    """The module's parameters in `named_parameters()` order.

    Raises MisuseError when the module keeps floating-point buffers: what training changes outside the parameters
    (BatchNorm's running means) would differ from firm to firm and never be averaged.
    """
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and name in module.state_dict():
            raise MisuseError(
                f"the buffer {name!r} is no parameter and would not be federated; use LayerNorm or GroupNorm instead "
                "of BatchNorm, and persistent=False for constants"
            )
    return tuple(ParameterShape(name, tuple(value.shape)) for name, value in module.named_parameters())


def num_parameters(layout: Iterable[ParameterShape]) -> int:
    """The length d of the flat vector."""
    return sum(item.size for item in layout)


def initial_parameters(module: "nn.Module", seed: int) -> NDArray[np.float32]:
    """The first global model of a module, (d,) float32; see `initial_from_layout`."""
    return initial_from_layout(layout_of(module), seed)


def initial_from_layout(layout: Layout, seed: int) -> NDArray[np.float32]:
    """The first global model, (d,) float32: the same bytes on every machine for the same layout and seed.

    Matrices and kernels are uniform in ±sqrt(3 / fan_in), which has variance 1 / fan_in; vectors named `bias…` are 0
    and all other vectors (the gains of norms) are 1. Each parameter has its own stream, keyed by seed, name and shape.
    """
    parts = [_initial(item, seed) for item in layout]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _initial(item: ParameterShape, seed: int) -> NDArray[np.float32]:
    if len(item.shape) < 2:
        is_bias = item.name.rsplit(".", 1)[-1].startswith("bias")
        return np.full(item.size, 0.0 if is_bias else 1.0, dtype=np.float32)
    key = hashlib.sha256(f"dure.initial/{seed}/{item.name}/{item.shape}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(key[:16], "big")).random_raw(item.size)
    # The upper 32 bits of each word as a number in (-1, 1), symmetric about 0: exact in float64.
    unit = ((words >> np.uint64(32)).astype(np.float64) + 0.5) / 2.0**31 - 1.0
    fan_in = math.prod(item.shape[1:])
    return np.asarray(unit * math.sqrt(3.0 / fan_in), dtype=np.float32)


def flatten(module: "nn.Module") -> NDArray[np.float32]:
    """The module's parameters as a new (d,) float32 vector."""
    parts = [value.detach().cpu().numpy().ravel() for _, value in module.named_parameters()]
    return np.concatenate(parts).astype(np.float32, copy=False)


def load(module: "nn.Module", parameters: NDArray[np.float32]) -> None:
    """Write a (d,) float32 vector into the module, in place. Raises MisuseError on another length."""
    import torch  # noqa: PLC0415  # kept out of the agent, which imports this module

    expected = num_parameters(layout_of(module))
    if parameters.shape != (expected,):
        raise MisuseError(f"the module has {expected} parameters, a vector of shape {parameters.shape} came")
    source = torch.from_numpy(np.array(parameters, dtype=np.float32))
    at = 0
    with torch.no_grad():
        for _, value in module.named_parameters():
            value.copy_(source[at : at + value.numel()].view_as(value))
            at += value.numel()
