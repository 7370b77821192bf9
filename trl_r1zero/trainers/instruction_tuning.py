"""What packed instruction tuning needs beside transformers' own `Trainer`, which runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    IntervalStrategy,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

from trl_r1zero.common.arguments import Count, arg
from trl_r1zero.data.packing import PackedSFTDataset
from trl_r1zero.generation.endings import warn_of_eos

from .base_config import CheckedConfig
from .guarded import DivergenceCallback, guarded
from .one_device import check_device, check_not_spread
from .optimizer_state import check_second_moment
from .progress import ProgressCallback, use_progress_callback
from .results import add_results, write_card
from .run_folder import RunFolderCallback
from .wandb_axes import use_wandb_axes

STEP_KEY, STEP_NAME = "tuning_step", "update"


@dataclass
class InstructionTuningConfig(CheckedConfig, TrainingArguments):
    """The settings of transformers' `Trainer`, with the handout's defaults.

    All of them may be set but `gradient_accumulation_steps`, which follows from `total_batch_size`.
    A ValueError as `CheckedConfig`."""

    derived_fields: ClassVar = {
        "gradient_accumulation_steps": "total_batch_size and per_device_train_batch_size"
    }

    total_batch_size: int = arg(32, "Chunks per optimizer update, over all processes.")
    per_device_train_batch_size: Count = arg(
        2, "Chunks that a process sees at a time. Memory only."
    )
    gradient_accumulation_steps: int | None = arg(  # type: ignore[assignment]
        None, "Derived from total_batch_size."
    )
    per_device_eval_batch_size: int = arg(8, "The same in validation.")
    num_train_epochs: float = arg(1, "Passes over the chunks.")
    learning_rate: float = arg(2e-5, "Peak learning rate of AdamW.")
    lr_scheduler_type: str = arg("cosine", "Learning-rate schedule of transformers.")
    warmup_steps: float = arg(0.03, "Linear warm-up: updates, or below 1 a share of all.")
    eval_strategy: str = arg("steps", "no, steps or epoch.")
    eval_steps: float = arg(200, "Validate every N optimizer updates.")
    eval_on_start: bool = arg(True, "Validate before the first update too.")
    save_strategy: str = arg("steps", "no, steps or epoch.")
    save_steps: float = arg(200, "Checkpoint every N optimizer updates, and at the end.")

    def _check(self) -> None:
        if self.total_batch_size < 1 or self.total_batch_size % self._chunks_at_a_time:
            raise ValueError(
                f"total_batch_size ({self.total_batch_size}) must be a multiple of "
                f"per_device_train_batch_size x processes ({self.per_device_train_batch_size} x "
                f"{self._launched_processes})"
            )

    def _derived_values(self) -> dict[str, Any]:
        return {"gradient_accumulation_steps": self.total_batch_size // self._chunks_at_a_time}

    @property
    def _chunks_at_a_time(self) -> int:
        return self.per_device_train_batch_size * self._launched_processes


class _Tuner(Trainer):
    """transformers' trainer; `train` stands within `guarded`, and takes what that takes."""

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        with guarded(self, resume_from_checkpoint) as checkpoint:
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        if self.accelerator.is_main_process:
            write_card(self.args)


def make_instruction_tuning_trainer(
    model: PreTrainedModel,
    args: InstructionTuningConfig,
    train_dataset: PackedSFTDataset,
    eval_dataset: PackedSFTDataset | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Trainer:
    """transformers' `Trainer` for packed chunks: the loss is the mean over all their tokens.

    What is added is the files of a run (`metrics.jsonl` ...) and a progress bar with validations.

    Args:
        model: A causal language model.
        args: The settings.
        train_dataset: What to train on.
        eval_dataset: What to validate on; needed unless `eval_strategy` is `no`.
        processing_class: The tokenizer, saved with the model.

    Raises:
        ValueError: There is nothing to validate on, the model is spread over devices, or
            `adam_beta2` does not fit the weights' dtype.
        UnusableGPUError: There is a GPU that torch cannot use, and `use_cpu` is false.
    """
    check_device(args)
    check_not_spread(model)
    strategy = IntervalStrategy(args.eval_strategy).value
    if strategy == "no":
        args.eval_on_start = False
    elif eval_dataset is None:
        raise ValueError(
            f"eval_strategy is {strategy}, but there is no eval_dataset; give one, or set it to no"
        )
    trainer = _Tuner(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate_chunks,
        processing_class=processing_class,
        callbacks=[RunFolderCallback(STEP_KEY), DivergenceCallback()],
    )
    if processing_class is not None and trainer.accelerator.is_main_process:
        warn_of_eos(processing_class, model)
    check_second_moment(
        args.optim, args.adam_beta2, model.parameters(), trainer.accelerator.distributed_type
    )
    use_progress_callback(trainer, ProgressCallback(STEP_KEY, STEP_NAME))
    use_wandb_axes(trainer)
    add_results(trainer)
    return trainer


def collate_chunks(chunks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """B chunks as a batch: `input_ids`, and their next tokens, each (B, T).

    The next tokens are there as `shift_labels`, which models of transformers take as they are, and
    as `labels`, without which they compute no loss.
    """
    ids_BT, labels_BT = (torch.stack([c[name] for c in chunks]) for name in ("input_ids", "labels"))
    return {"input_ids": ids_BT, "labels": labels_BT, "shift_labels": labels_BT}
