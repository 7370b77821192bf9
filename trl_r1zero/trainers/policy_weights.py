"""The policy's weights as a vLLM server is to have them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trl_r1zero.generation.weight_sync import wire_dtype
from trl_r1zero.generation.weight_transfer import TensorInfo

from .trl_compat import NamedWeights


class PolicyWeights(NamedWeights):
    """The policy's weights, rounded to what a server computes in."""

    # What the server computes in, on the process that sends: weights are rounded to it
    # (`wire_dtype`). None: they are given as they are.
    server_dtype: torch.dtype | None = None

    def infos(self) -> list[TensorInfo]:
        """What `tensors` will yield; a collective call. Nothing is copied for it."""
        return [
            TensorInfo(
                name, str(self._dtype_of(tensor)).removeprefix("torch."), tuple(tensor.shape)
            )
            for name, tensor in self
        ]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The named weights, one at a time; every process must take all of them."""
        for name, tensor in self:
            yield name, tensor.to(self._dtype_of(tensor))

    def _dtype_of(self, tensor: Tensor) -> torch.dtype:
        return wire_dtype(tensor.dtype, self.server_dtype)
