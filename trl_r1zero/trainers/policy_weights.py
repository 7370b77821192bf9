"""The policy's weights as a vLLM server is to have them. Its import is vLLM's, many seconds."""

from collections.abc import Iterator

from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration

from trl_r1zero.generation.weight_transfer import TensorInfo


class PolicyWeights(VLLMGeneration):
    """The policy's weights under the names of its checkpoint.

    How TRL gathers sharded parameters (FSDP, ZeRO-3) and merges adapters (PEFT) for its own
    synchronisation; only that part of TRL's class is used.
    """

    def _init_vllm(self) -> None:
        """No engine of TRL's: see `ServerGeneration`."""

    def infos(self) -> list[TensorInfo]:
        """What `tensors` will yield; a collective call."""
        return [TensorInfo.of(name, tensor) for name, tensor in self._iter_named_params()]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The named weights, one at a time; every process must take all of them."""
        yield from self._iter_named_params()
