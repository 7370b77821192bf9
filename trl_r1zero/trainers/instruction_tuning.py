"""What packed instruction tuning needs beside transformers' own `Trainer`, which runs it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    IntervalStrategy,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from trl_r1zero.data.packing import PackedSFTDataset

from .base_config import knob
from .one_device import check_device, check_not_spread, settle_use_cpu, use_one_gpu
from .optimizer_state import check_second_moment
from .progress import ProgressCallback, use_progress_callback
from .run_folder import RunFolderCallback
from .wandb_axes import use_wandb_axes

STEP_KEY, STEP_NAME = "tuning_step", "update"


@dataclass
class InstructionTuningConfig(TrainingArguments):
    """The settings of transformers' `Trainer`, with the handout's defaults.

    All of them may be set but `gradient_accumulation_steps`, which follows from
    `total_batch_size`.

    Raises:
        ValueError: The batch sizes do not fit one another.
    """

    total_batch_size: int = knob(32, "Chunks per optimizer update, over all processes.")
    per_device_train_batch_size: int = knob(2, "Chunks that a process sees at a time. Memory only.")
    gradient_accumulation_steps: int | None = knob(None, "Derived from total_batch_size.")  # type: ignore[assignment]
    per_device_eval_batch_size: int = knob(8, "The same in validation.")
    num_train_epochs: float = knob(1, "Passes over the chunks.")
    learning_rate: float = knob(2e-5, "Peak learning rate of AdamW.")
    adam_beta2: float = knob(0.95, "AdamW's second beta; 0.999 needs averages in float32.")
    lr_scheduler_type: str = knob("cosine", "Learning-rate schedule of transformers.")
    warmup_steps: float = knob(0.03, "Linear warm-up: updates, or below 1 a share of all.")
    bf16: bool | None = knob(None, "bfloat16 autocast. Unset: where there is an accelerator.")  # type: ignore[assignment]
    logging_steps: float = knob(1, "Log every so many optimizer updates.")
    logging_nan_inf_filter: bool = knob(False, "true would hide a NaN loss.")
    eval_strategy: str = knob("steps", "no, steps or epoch.")
    eval_steps: float = knob(200, "Validate every so many optimizer updates.")
    eval_on_start: bool = knob(True, "Validate before the first update too.")
    save_strategy: str = knob("steps", "no, steps or epoch.")
    save_steps: float = knob(200, "Checkpoint every so many optimizer updates, and at the end.")
    save_total_limit: int | None = knob(1, "Checkpoints to keep.")

    def __post_init__(self) -> None:
        settle_use_cpu(self)
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and not self.fp16
        given = self.gradient_accumulation_steps
        self.gradient_accumulation_steps = 1
        super().__post_init__()
        use_one_gpu(self)
        at_a_time = self.per_device_train_batch_size * self.world_size
        if self.total_batch_size < 1 or self.total_batch_size % at_a_time:
            raise ValueError(
                f"total_batch_size ({self.total_batch_size}) must be a multiple of "
                f"per_device_train_batch_size x processes ({self.per_device_train_batch_size} x "
                f"{self.world_size})"
            )
        self.gradient_accumulation_steps = self.total_batch_size // at_a_time
        # What `dataclasses.replace` hands in is what was derived.
        if given not in (None, self.gradient_accumulation_steps):
            raise ValueError(
                "gradient_accumulation_steps follows from another setting; set total_batch_size "
                "and per_device_train_batch_size instead"
            )


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
    strategy = IntervalStrategy(args.eval_strategy)
    if strategy == IntervalStrategy.NO:
        args.eval_on_start = False
    elif eval_dataset is None:
        raise ValueError(
            f"eval_strategy is {strategy.value}, but there is no eval_dataset; give one, or set "
            "it to no"
        )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate_chunks,
        processing_class=processing_class,
        callbacks=[RunFolderCallback(STEP_KEY)],
    )
    check_second_moment(
        args.optim, args.adam_beta2, model.parameters(), trainer.accelerator.distributed_type
    )
    use_progress_callback(trainer, ProgressCallback(STEP_KEY, STEP_NAME))
    use_wandb_axes(trainer)
    return trainer


def collate_chunks(chunks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns B chunks as a batch: `input_ids`, and their next tokens, each (B, T).

    The next tokens are there as `shift_labels`, which models of transformers take as they are, and
    as `labels`, without which they compute no loss.
    """
    labels_BT = torch.stack([chunk["labels"] for chunk in chunks])
    return {
        "input_ids": torch.stack([chunk["input_ids"] for chunk in chunks]),
        "labels": labels_BT,
        "shift_labels": labels_BT,
    }
