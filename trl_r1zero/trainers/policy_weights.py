"""The policy's weights as a vLLM server is to have them."""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from trl_r1zero.generation.adapter_sync import LoraPlan, adapter_obstacle
from trl_r1zero.generation.weight_sync import wire_dtype
from trl_r1zero.generation.weight_transfer import TensorInfo

from .trl_compat import NamedWeights


class PolicyWeights(NamedWeights):
    """The policy's weights, rounded to what a server computes in.

    Attributes:
        server_dtype: What the server computes in, on the process that sends: weights are rounded
            to it (`wire_dtype`). None: they are given as they are.
        adapters: Give the active adapter alone, under PEFT's names, not the whole model.
    """

    server_dtype: torch.dtype | None = None
    adapters: bool = False

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(adapter_tensors(self.model).items()) if self.adapters else super().__iter__()

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


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """The tensors of a PEFT model's active adapter, under the names of its file."""
    tensors: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=model.active_adapters[0], save_embedding_layers=False
    )
    return tensors


def lora_plan(model: Any, way: str, sharded: bool, versions: int) -> LoraPlan:
    """How the adapters of a policy, if it has some, are to reach a server; see `LoraPlan`."""
    configs = model.peft_config if isinstance(model, PeftModel) else {}
    active = list(model.active_adapters) if configs else []
    names = adapter_tensors(model) if len(active) == 1 else ()
    obstacle = adapter_obstacle(configs, active, names, sharded)
    if obstacle is not None:
        return LoraPlan(way, obstacle)
    config: Any = configs[active[0]]
    targets = config.target_modules
    facts = {
        "peft_type": "LORA",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "use_rslora": config.use_rslora,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "bias": "none",
    }
    return LoraPlan(way, None, facts, versions)
