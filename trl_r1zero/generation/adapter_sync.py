"""LoRA adapters to a vLLM server that has the base weights, without those of the model.

Each update is an adapter of a new name, in a folder that the server reads: under its old name vLLM
would answer from what the old one left in the cache. vLLM loads plain adapters alone; what it would
refuse, or take for something else (ranks that differ by layer), is merged instead.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

from safetensors.torch import save_file

from . import vllm_compat
from .vllm_client import VLLMRefusal, VLLMServerEngine
from .vllm_server import VLLMServerError
from .weight_sync import WeightSync
from .weight_transfer import NamedTensors, TensorInfo

LORA_WAYS = ("auto", "adapters", "merged")
_FORBIDDEN = (
    *("use_dora", "use_qalora", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("layer_replication", "trainable_token_indices", "target_parameters", "lora_bias"),
    *("fan_in_fan_out",),
)


def adapter_obstacle(
    configs: Mapping[str, Any], active: Sequence[str], names: Iterable[str], sharded: bool
) -> str | None:
    """Why a policy's adapters cannot go by themselves to any server; None if they can.

    Args:
        configs: PEFT's config of each adapter.
        active: The names of those in use.
        names: Of the tensors of the active one.
        sharded: Whether processes share out the weights.
    """
    if not configs:
        return "the policy has no adapters (use_peft)"
    if sharded:
        return "the processes share out the weights (ZeRO-3, FSDP)"
    if len(active) != 1:
        return f"{len(active)} adapters are in use, not 1"
    config = configs[active[0]]
    if config.peft_type != "LORA":  # a str, too
        return f"the adapter is {config.peft_type.value}, not LORA"
    used = [name for name in _FORBIDDEN if getattr(config, name, None)]
    used += ["bias"] * (config.bias != "none")
    if used:
        return f"vLLM loads no adapter with {', '.join(used)}"
    if config.r > vllm_compat.LORA_RANKS[-1]:
        return f"its rank is {config.r}, above {vllm_compat.LORA_RANKS[-1]}"
    if any(part in name for name in names for part in ("lora_embedding", ".lm_head.")):
        return "it changes the embedding or the head"
    return None


@dataclass(frozen=True)
class LoraPlan:
    """How a policy's adapters are to reach a server.

    Attributes:
        way: One of `LORA_WAYS`.
        obstacle: See `adapter_obstacle`.
        config: Of `adapter_config.json`; empty if they cannot go by themselves.
        versions: How many of them requests that run may have at a time.
    """

    way: str = "merged"
    obstacle: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: int = 1

    @property
    def rank(self) -> int:
        return int(self.config.get("r", 0))

    def go_alone(self, max_rank: int | None, sleep_level: int) -> bool:
        """Whether they go by themselves to a server that takes ranks up to `max_rank` (None: no
        adapters), and sleeps as said; a ValueError if they are to and cannot."""
        obstacle = self.obstacle
        if obstacle is None and max_rank is None:
            obstacle = "the server takes no adapters; start it with --max_lora_rank"
        elif obstacle is None and self.rank > (max_rank or 0):
            obstacle = f"the server takes ranks up to {max_rank}, and theirs is {self.rank}"
        elif obstacle is None and sleep_level:
            obstacle = f"the server gives up its own weights when it sleeps (level {sleep_level})"
        if obstacle is not None and self.way == "adapters":
            raise ValueError(f"vllm_lora is adapters, but {obstacle}; set auto or merged")
        return obstacle is None and self.way != "merged"


class AdapterSync(WeightSync):
    """Adapters through a private folder of this machine, which the server has to see."""

    def __init__(self, engine: VLLMServerEngine, plan: LoraPlan, timeout_seconds: float) -> None:
        super().__init__(engine, timeout_seconds)
        self._plan, self._number = plan, 0
        self._folder = tempfile.TemporaryDirectory(prefix="trl_r1zero_lora_")

    def update(
        self, infos: Sequence[TensorInfo], tensors: NamedTensors, requests_run: bool = False
    ) -> None:
        """As `WeightSync.update`, but that requests that run keep the adapter they began with."""
        self._number += 1
        folder = self._adapter(self._number)
        folder.mkdir()
        named = {i.name: t.detach().cpu().contiguous() for i, (_, t) in zip(infos, tensors)}  # noqa: B905
        save_file(named, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(dict(self._plan.config)))
        body = {"lora_name": folder.name, "lora_path": str(folder)}
        try:
            self._request("POST", vllm_compat.LOAD_ADAPTER, body)
        except VLLMRefusal as error:
            raise VLLMServerError(
                f"{error}; it has to see {folder}. vllm_lora: merged sends whole weights instead"
            ) from error
        self.engine.model = folder.name
        if (old := self._number - self._plan.versions) > 0:
            self._request(
                "POST", vllm_compat.UNLOAD_ADAPTER, {"lora_name": self._adapter(old).name}
            )
            # One later: a request that has just ended may still be looked up.
            rmtree(self._adapter(old - 1), ignore_errors=True)

    def close(self) -> None:
        """As `WeightSync.close`."""
        self._folder.cleanup()

    def _adapter(self, number: int) -> Path:
        # The name too is this trainer's alone: another one may come to the server after it.
        return Path(self._folder.name, f"{Path(self._folder.name).name}-{number}")
