"""The weight-transfer engine of this package inside of a vLLM server; vLLM loads it by entry point.

`pyproject.toml` names `register` in the group `vllm.general_plugins`, so a `vllm serve` in the same
environment knows `--weight-transfer-config '{"backend": "gloo"}'`, or `trl_r1zero_ipc`. Both are
this engine: the trainer's first request says whether weights come by gloo or through memory that is
shared.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .shared_buffer import BufferReader, parse_handle
from .weight_transfer import (
    BACKEND,
    IPC_BACKEND,
    GlooGroup,
    TensorInfo,
    join_as_worker,
    receive_weights,
)


def register() -> None:
    """Make the engine known to vLLM; called in each of its processes, perhaps more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    missing = {BACKEND, IPC_BACKEND} - set(WeightTransferEngineFactory._registry)
    if missing:
        engine = _engine_class()
        for backend in missing:
            WeightTransferEngineFactory.register_engine(backend, engine)


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
    class BufferInitInfo(WeightTransferInitInfo):
        buffer: dict[str, Any]

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        names: list[str]
        dtype_names: list[str]
        shapes: list[list[int]]
        start: int = 0  # of the piece in the buffer, and its bytes: of the buffer alone
        num_bytes: int | None = None

        @property
        def tensors(self) -> list[TensorInfo]:
            columns = zip(self.names, self.dtype_names, self.shapes, strict=True)
            return [TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape in columns]

    class CheckpointWeightEngine(WeightTransferEngine[GlooInitInfo | BufferInitInfo, UpdateInfo]):
        """Receives checkpoint-format weights, by gloo broadcast or through a shared buffer."""

        init_info_cls = GlooInitInfo
        update_info_cls = UpdateInfo

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.group: GlooGroup | None = None
            self.buffer: BufferReader | None = None

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
            self.group = join_as_worker(
                init_info.master_address,
                init_info.master_port,
                init_info.rank_offset + rank,
                init_info.world_size,
                init_info.timeout_seconds,
            )

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
            tensors = update_info.tensors
            if self.buffer is not None:
                if update_info.num_bytes is None:
                    raise ValueError("num_bytes must say how much is in the buffer")
                named = self.buffer.take(tensors, update_info.start, update_info.num_bytes)
                if named:
                    load_weights(named)
            elif self.group is not None:
                for named_tensors in receive_weights(self.group, tensors):
                    load_weights([(name, tensor.to(self.device)) for name, tensor in named_tensors])
            else:
                raise RuntimeError(
                    "init_weight_transfer_engine must be called before weights are sent"
                )

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            if self.device.type == "cpu":
                _pack_embeddings_again(self.model)
            elif self.device.type == "cuda":
                # The copies on the way: a key-value cache that wakes up next wants their memory.
                torch.cuda.empty_cache()

        def shutdown(self) -> None:
            self.group = self.buffer = None

    return CheckpointWeightEngine


def _forget_unfinished_update(model: torch.nn.Module) -> None:
    """Forget what an update brought that broke off in the midst of a layer.

    vLLM goes on counting from there, and would take a layer for whole that has old weights, some of
    them twice, and lacks new ones.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights.clear()
        info.load_numel = 0


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
