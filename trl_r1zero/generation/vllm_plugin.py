"""The weight-transfer engine `gloo` inside of a vLLM server; vLLM loads it by entry point.

`pyproject.toml` names `register` in the group `vllm.general_plugins`, so a `vllm serve` in the same
environment knows `--weight-transfer-config '{"backend": "gloo"}'`.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .weight_transfer import BACKEND, GlooGroup, TensorInfo, join_as_worker, receive_weights


def register() -> None:
    """Make the engine known to vLLM; called in each of its processes, perhaps more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, _engine_class())


def _engine_class() -> type:
    """The engine; a function, as its base classes cost seconds to import."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    @dataclass
    class GlooInitInfo(WeightTransferInitInfo):
        master_address: str
        master_port: int
        rank_offset: int
        world_size: int
        timeout_seconds: float

    @dataclass
    class GlooUpdateInfo(WeightTransferUpdateInfo):
        names: list[str]
        dtype_names: list[str]
        shapes: list[list[int]]

        @property
        def tensors(self) -> list[TensorInfo]:
            columns = zip(self.names, self.dtype_names, self.shapes, strict=True)
            return [TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape in columns]

    class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
        """Receives checkpoint-format weights by gloo broadcast, from a trainer on any device."""

        init_info_cls = GlooInitInfo
        update_info_cls = GlooUpdateInfo

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.group: GlooGroup | None = None

        def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
            parallel = self.parallel_config
            rank = parallel.data_parallel_index * parallel.world_size + parallel.rank
            self.group = None  # a trainer that comes after another one: its sockets close here
            self.group = join_as_worker(
                init_info.master_address,
                init_info.master_port,
                init_info.rank_offset + rank,
                init_info.world_size,
                init_info.timeout_seconds,
            )

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # The base class synchronises an accelerator afterwards, which a CPU server lacks.
            self.receive_weights(self.parse_update_info(update_info))
            if self.device.type != "cpu":
                torch.accelerator.synchronize()

        def receive_weights(self, update_info: GlooUpdateInfo) -> None:
            if self.group is None:
                raise RuntimeError(
                    "init_weight_transfer_engine must be called before weights are sent"
                )
            load_weights: Any = self.model.load_weights
            for named_tensors in receive_weights(self.group, update_info.tensors):
                load_weights([(name, tensor.to(self.device)) for name, tensor in named_tensors])

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            if self.device.type == "cpu":
                _pack_embeddings_again(self.model)

        def shutdown(self) -> None:
            self.group = None

    return GlooWeightTransferEngine


def _pack_embeddings_again(model: torch.nn.Module) -> None:
    """Renew the CPU backend's packed copies of embeddings and output heads.

    The layerwise reload copies new values into the weights of these layers. A head that is tied to
    the embedding receives none itself: its packed copy would go on answering with the old weights.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
    )

    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if isinstance(layer, VocabParallelEmbedding) and isinstance(
            method, UnquantizedEmbeddingMethod
        ):
            method.process_weights_after_loading(layer)
