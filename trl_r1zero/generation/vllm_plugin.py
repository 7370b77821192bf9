"""Makes the weight-transfer engine of this package known to vLLM, which loads it by entry point.

`pyproject.toml` names `register` in the group `vllm.general_plugins`, so a `vllm serve` in the same
environment knows `--weight-transfer-config '{"backend": "gloo"}'`, or `trl_r1zero_ipc`.
"""

from .vllm_compat import BACKENDS


def register() -> None:
    """Called by vLLM in each of its processes, perhaps more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for name in (BACKENDS["gloo"], BACKENDS["ipc"]):
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(
                name, f"{__package__}.vllm_engine", "CheckpointWeightEngine"
            )
