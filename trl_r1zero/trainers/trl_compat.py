"""What leans on private names of TRL, transformers, accelerate and datasets, besides overrides.

tests/test_trl_contract.py and tests/test_trl_loop_contract.py watch each of them.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import import_utils

# In the order in which they import one another.
_MODULES_WITH_VLLM = (
    "trl.generation.vllm_client",
    "trl.generation.vllm_generation",
    "trl.generation",
)


@contextmanager
def _without_vllm() -> Iterator[None]:
    """In it, TRL's modules are imported as if vLLM were not installed.

    Where it is, they import all of it, many seconds in each process of a run; our trainers need
    none of that. Whoever has TRL use vLLM later in the same process makes these modules ask again
    whether it is there; they are then executed anew, in place, and have what they need.
    """
    is_available = import_utils.is_vllm_available
    importing = True

    def is_vllm_available(min_version: str | None = None) -> bool:
        if importing:
            return False
        for name in _MODULES_WITH_VLLM:
            importlib.reload(importlib.import_module(name))
        return is_available(min_version)

    import_utils.is_vllm_available = is_vllm_available
    try:
        yield
    finally:
        importing = False
        import_utils.is_vllm_available = is_available


with _without_vllm():
    from trl import GRPOTrainer
    from trl.generation.vllm_generation import VLLMGeneration


class _WithoutEngine(VLLMGeneration):
    """TRL's class for vLLM, of which the way to gather sharded parameters and to merge adapters is
    used alone."""

    def _init_vllm(self) -> None:
        """No engine of TRL's."""


class NamedWeights:
    """A model's weights under the names of its checkpoint: sharded ones (FSDP, ZeRO-3) gathered,
    adapters (PEFT) merged."""

    def __init__(
        self, model: Any, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.model = model
        self._weights = _WithoutEngine(model, accelerator, tokenizer, mode="server")

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """One at a time; every process must take all of them."""
        return self._weights._iter_named_params()


# The trainers' loop


def set_train_batch_share(trainer: Any) -> None:
    """Let the data loader give out this process's share of a train batch.

    transformers takes it from `args.train_batch_size`; here that name is the handout's, for all
    processes together.
    """
    trainer._train_batch_size = trainer.args.train_batch_share


def set_last_backward(accelerator: Accelerator, is_last: bool) -> None:
    """Say whether the next backward is the update's last: accelerate takes that from this flag."""
    accelerator.gradient_state._set_sync_gradients(is_last)


def add_to_update_line(
    trainer: Any, means: Mapping[str, float], counters: Mapping[str, float]
) -> None:
    """Add metrics to the update's line: means over the updates since the last line, and counters,
    of which the newest counts."""
    for name, value in means.items():
        trainer._metrics["train"][name].append(value)
    for name, value in counters.items():
        trainer._metrics["train"][name] = [value]


def save_checkpoint(trainer: Any) -> None:
    """What the loop does where a checkpoint is due."""
    trainer._save_checkpoint(trainer.model, trial=None)


def tokenizer_of(trainer: Any) -> Any:
    """The tokenizer, also where the processing class is a processor that has one."""
    return trainer._tokenizer


def fingerprint_of(dataset: Dataset) -> str:
    """What tells a data set of `datasets` from others."""
    return dataset._fingerprint


# GRPO's rewards


def trl_rewards(
    trainer: GRPOTrainer, examples: Sequence[Mapping[str, Any]], completions: Sequence[Any]
) -> tuple[Tensor, dict[str, list[Any]], dict[str, list[float]]]:
    """What the reward functions of a GRPO trainer say of this process's completions.

    Returns:
        (N, number of functions) rewards of the completions of all processes, NaN for None; what
        the functions gave `log_extra`, for this process's; and what they gave `log_metric`.
    """
    theirs: Any = trainer
    rewards = theirs._calculate_rewards(
        list(examples),
        [example["prompt"] for example in examples],
        [completion.text for completion in completions],
        [completion.token_ids for completion in completions],
    )
    columns, metrics = dict(theirs._pending_extra_logs), dict(theirs._pending_metrics)
    theirs._pending_extra_logs.clear()
    theirs._pending_metrics.clear()
    return rewards, columns, metrics
