"""The weight-transfer engine of this package inside of a vLLM server's workers.

One engine under two names (`vllm_plugin`): the trainer's first request says whether weights come by
gloo or through memory that is shared. It imports vLLM, so vLLM alone imports it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from .shared_buffer import BufferReader, parse_handle
from .weight_transfer import GlooGroup, TensorInfo, join_as_worker, receive_weights


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_seconds: float


@dataclass
class BufferInitInfo(WeightTransferInitInfo):
    buffer: dict[str, Any]


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """What is to come. `start` and `num_bytes`, of the piece in the buffer, are for that alone."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    start: int = 0
    num_bytes: int | None = None

    @property
    def tensors(self) -> list[TensorInfo]:
        columns = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape in columns]


class CheckpointWeightEngine(WeightTransferEngine[GlooInitInfo | BufferInitInfo, UpdateInfo]):
    """Receives checkpoint-format weights, by gloo broadcast or through a shared buffer."""

    init_info_cls = GlooInitInfo
    update_info_cls = UpdateInfo
    group: GlooGroup | None = None
    buffer: BufferReader | None = None

    def parse_init_info(self, init_dict: dict[str, Any]) -> GlooInitInfo | BufferInitInfo:
        if set(init_dict) == {"buffer"}:
            return BufferInitInfo(**init_dict)
        return super().parse_init_info(init_dict)

    def init_transfer_engine(self, init_info: GlooInitInfo | BufferInitInfo) -> None:
        self.shutdown()  # a trainer that comes after another one: what that had is let go
        if isinstance(init_info, BufferInitInfo):
            self.buffer = BufferReader(parse_handle(init_info.buffer), self.device)
            return
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank
        info = asdict(init_info)
        self.group = join_as_worker(rank=info.pop("rank_offset") + rank, **info)

    def start_weight_update(self) -> None:
        _forget_unfinished_update(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises an accelerator afterwards, which a CPU server lacks.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            # The trainer puts other weights into the buffer once this has been answered.
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        load_weights: Any = self.model.load_weights
        if self.buffer is not None:
            if update_info.num_bytes is None:
                raise ValueError("num_bytes must say how much is in the buffer")
            start, num_bytes = update_info.start, update_info.num_bytes
            if named := self.buffer.take(update_info.tensors, start, num_bytes):
                load_weights(named)
        elif self.group is not None:
            for bucket in receive_weights(self.group, update_info.tensors):
                load_weights([(name, tensor.to(self.device)) for name, tensor in bucket])
        else:
            raise RuntimeError("init_weight_transfer_engine must be called before weights are sent")

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _pack_embeddings_again(self.model)
        elif self.device.type == "cuda":
            # The copies on the way: a key-value cache that wakes up next wants their memory.
            torch.cuda.empty_cache()

    def shutdown(self) -> None:
        self.group = self.buffer = None


def _forget_unfinished_update(model: torch.nn.Module) -> None:
    """Forget what an update brought that broke off in the midst of a layer.

    vLLM goes on counting from there, and would take a layer for whole that has old weights, some of
    them twice, and lacks new ones.
    """
    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights.clear()
        info.load_numel = 0


def _pack_embeddings_again(model: torch.nn.Module) -> None:
    """Renew the CPU backend's packed copies of embeddings and output heads.

    The layerwise reload copies new values into the weights of these layers. A head that is tied to
    the embedding receives none itself: its packed copy would go on answering with the old weights.
    """
    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if isinstance(layer, VocabParallelEmbedding) and isinstance(
            method, UnquantizedEmbeddingMethod
        ):
            method.process_weights_after_loading(layer)
