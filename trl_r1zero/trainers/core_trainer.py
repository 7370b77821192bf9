"""What all trainers do alike: optimizer updates of their own cut, the best model, the run's folder.

To the loop of transformers an update is one step without accumulation: `training_step` sees this
process's whole share of a train batch and cuts it itself, so the gradient does not depend on the
cut, and no micro-batch is wider than its own longest row.
"""

import inspect
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from accelerate.utils import DistributedType, broadcast_object_list, is_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import TrainOutput
from trl.trainer.utils import use_adapter

from trl_r1zero.devices.training_setup import sharding_of
from trl_r1zero.functional import get_response_log_probs

from .attention import packs_rows
from .base_config import StrictConfig
from .memory_limits import (
    TrainingMemory,
    bytes_to_train_with,
    microbatch_limits,
    out_of_memory,
    training_memory_of,
)
from .microbatches import MicroBatchLimits, PaddedRows
from .one_device import check_device, loaded_onto_one_device
from .optimizer_state import check_second_moment
from .profile import ProfileCallback
from .progress import ProgressCallback, use_progress_callback
from .run_folder import RunFolderCallback, checkpoint_to_resume
from .timing import StepTimer
from .wandb_axes import use_wandb_axes

logger = logging.getLogger(__name__)

T = TypeVar("T")

BEST_MODEL_FOLDER = "best"


class CoreTrainer(Trainer):
    """Comes before TRL's trainer among the bases.

    Attributes:
        step_key: What counts the steps of this kind of run; `step_name`: what a step is called.
        rows_per_microbatch: Rows that a process computes log-probabilities of at a time, at most;
            None where tokens alone count.
        rows_per_generation: Completions that transformers generates at a time; None where memory
            decides.
        timer: Seconds of the parts of a step.
    """

    args: Any
    model: Any
    step_key: ClassVar[str]
    step_name: ClassVar[str] = "update"
    rows_per_microbatch: int | None
    rows_per_generation: int | None
    timer: StepTimer
    _metrics: Any  # TRL's: lists of numbers by mode and name
    _tokenizer: PreTrainedTokenizerBase

    def _take_limits(self, args: StrictConfig) -> None:
        """To be called at the beginning of `__init__`, with what was set."""
        self.rows_per_microbatch = args.rows_per_microbatch
        self.rows_per_generation = args.per_device_eval_batch_size

    def __init__(self, *, model: Any, args: Any, **others: Any) -> None:
        check_device(args)
        with loaded_onto_one_device(args, model):
            super().__init__(model=model, args=args, **others)

    def _set_up(self) -> None:
        """To be called at the end of `__init__`."""
        self.args.pack_rows = packs_rows(self.args.pack_rows, self.model.config)
        if self.optimizer is None:  # nobody brought one of their own
            check_second_moment(
                self.args.optim,
                self.args.adam_beta2,
                self.model.parameters(),
                self.accelerator.distributed_type,
            )
        self.timer = StepTimer(self.accelerator.device)
        self.progress = ProgressCallback(self.step_key, self.step_name)
        use_progress_callback(self, self.progress)
        use_wandb_axes(self)
        self.add_callback(RunFolderCallback())
        if self.args.profile:
            self.add_callback(ProfileCallback(self.progress))

    @cached_property
    def fused_lm_head(self) -> bool:
        """Whether log-probabilities come from TRL's fused head."""
        if self.args.fused_lm_head is None:
            return self.accelerator.device.type != "cpu"
        return self.args.fused_lm_head

    # Optimizer updates

    def _forward_and_backward(self, model: torch.nn.Module, micro_batches: Sequence[Any]) -> Tensor:
        """The loss of a train batch, without graph, and its gradient: the sum over micro-batches.

        Every process has equally many of them.
        """
        self._make_room()
        try:
            return self._sum_of_losses(model, micro_batches)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(out_of_memory(self._limits, error)) from error

    def _sum_of_losses(self, model: torch.nn.Module, micro_batches: Sequence[Any]) -> Tensor:
        loss = torch.zeros((), device=self.accelerator.device)
        for number, micro_batch in enumerate(micro_batches, start=1):
            is_last = number == len(micro_batches)
            # Accelerate takes the update's end from this flag.
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            # DeepSpeed tells the last backward from the others by that flag alone.
            syncs = is_last or self.accelerator.distributed_type == DistributedType.DEEPSPEED
            with nullcontext() if syncs else self.accelerator.no_sync(model):
                with self.timer.part("forward"):
                    piece: Any = self.compute_loss(model, micro_batch)
                with self.timer.part("backward"):
                    self.accelerator.backward(piece)
            loss += piece.detach()
        return loss

    def _make_room(self) -> None:
        """To be called before forward passes: whoever shares the device gives up its memory; a
        collective call. Nobody does, unless a subclass says so."""

    def _mean_over_processes(self, *numbers: float) -> list[float]:
        """The mean of each number over the processes; a collective call."""
        local = torch.tensor(
            numbers,
            dtype=torch.float64 if self.accelerator.device.type != "mps" else torch.float32,
            device=self.accelerator.device,
        )
        return self.accelerator.reduce(local, reduction="mean").tolist()

    def _rank_and_size(self) -> tuple[int, int]:
        """The number of this process, and of processes."""
        return self.accelerator.process_index, self.accelerator.num_processes

    @property
    def _limits(self) -> MicroBatchLimits:
        tokens = self.args.max_tokens_per_microbatch
        return microbatch_limits(
            self.rows_per_microbatch,
            tokens,
            self._token_budget if tokens is None else None,
            packed=self.args.pack_rows,
        )

    def _longest_row(self) -> int:
        """Tokens of the longest row that may be trained on, the same on every process."""
        raise NotImplementedError

    @cached_property
    def _memory(self) -> TrainingMemory | None:
        """What decides how much fits into memory; None where that is not known.

        A collective call, the first time: processes agree on what the fullest device has. That is
        measured once a server on it sleeps; one that stays awake has its part already.
        """
        if bytes_to_train_with(self.accelerator.device) is None:
            return None
        self._make_room()
        mine = bytes_to_train_with(self.accelerator.device)
        local = torch.tensor([mine], device=self.accelerator.device)
        device_bytes = int(self.accelerator.gather(local).min().item())
        reference: Any = getattr(self, "ref_model", None)
        model = self.accelerator.unwrap_model(self.model)
        plugin = self.accelerator.state.deepspeed_plugin
        return training_memory_of(
            model,
            self.args,
            device_bytes,
            longest_row=self._longest_row(),
            reference_model=reference is not None and reference.device == model.device,
            processes=self.accelerator.num_processes,
            sharding=sharding_of(
                str(self.accelerator.distributed_type.value), plugin and plugin.zero_stage
            ),
        )

    @cached_property
    def _token_budget(self) -> int | None:
        """Tokens of a micro-batch that fit into memory; None where that is not known."""
        if self._memory is None:
            return None
        try:
            tokens = self._memory.microbatch_tokens()
        except ValueError as error:
            tokens = self._memory.setup.longest_row
            logger.warning("It may not fit into memory: %s", error)
        if self.accelerator.is_main_process:
            self.progress.say(
                f"micro-batches of at most {tokens:,} tokens (unless max_tokens_per_microbatch is "
                f"set): {self._memory.in_words()}"
            )
        return tokens

    @cached_property
    def _forward_parameters(self) -> Collection[str]:
        """What the policy's forward can be told."""
        model: Any = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if is_peft_model(model) else model
        return inspect.signature(model.forward).parameters

    def _log_probs(
        self,
        model: Any,
        rows: PaddedRows,
        temperature: float,
        return_token_entropy: bool = False,
        fused: bool = True,
    ) -> dict[str, Tensor]:
        """Log-probabilities (B, T) of the tokens that the response mask selects; 0 or anything
        elsewhere.

        By `get_response_log_probs`, on response positions only, or by TRL's fused head, which has
        its own temperature.

        Args:
            model: The policy or a reference model.
            rows: On the device of the model.
            temperature: Of the fused head too, where that is used.
            return_token_entropy: Whether to return `token_entropy` besides `log_probs`.
            fused: Whether the fused head may be used, where there is one.
        """
        inputs: dict[str, Any] = {}
        ids, labels, mask = rows.input_ids, rows.labels, rows.response_mask
        if self.args.pack_rows:
            columns_T = torch.arange(ids.shape[1], device=ids.device)
            lengths_B1 = torch.tensor(rows.lengths, device=ids.device).unsqueeze(1)
            real_BT = columns_T < lengths_B1
            # That positions begin anew tells the model where a row ends.
            inputs["position_ids"] = columns_T.expand_as(ids)[real_BT].unsqueeze(0)
            ids, labels, mask = (t[real_BT].unsqueeze(0) for t in (ids, labels, mask))
        with self.accelerator.autocast():
            if self.fused_lm_head and fused:
                output = model(
                    input_ids=ids,
                    shift_labels=labels.masked_fill(~mask, -100),
                    fused_lm_head=True,
                    **inputs,
                )
                result = {"log_probs": output.log_probs, "token_entropy": output.entropy}
            else:
                if "use_cache" in self._forward_parameters:
                    inputs["use_cache"] = False
                if "logits_to_keep" in self._forward_parameters:
                    # At least one: a row that is not in the loss needs a graph too.
                    any_S = mask.any(dim=0)
                    any_S[-1] |= ~any_S.any()
                    inputs["positions"] = any_S.nonzero().squeeze(1)
                result = get_response_log_probs(
                    model, ids, labels, return_token_entropy, temperature=temperature, **inputs
                )
        if self.args.pack_rows:
            result = {
                name: values.new_zeros(real_BT.shape).masked_scatter(real_BT, values)
                for name, values in result.items()
                if values is not None
            }
        return result

    def _base_policy(self) -> AbstractContextManager[Any]:
        """In it, a policy with PEFT is the one it started from: the base model without adapters, or
        TRL's copy of the adapter that it came with."""
        model = self.accelerator.unwrap_model(self.model)
        return use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)

    def _from_main(self, value: T) -> T:
        """The value that the main process has; a collective call."""
        values = [value]
        broadcast_object_list(values, from_process=0)
        return values[0]

    def _log_with_update(self, means: Mapping[str, float], counters: Mapping[str, float]) -> None:
        """Add metrics to the update's line: means over the updates since the last line, and
        counters, of which the newest counts."""
        for name, value in means.items():
            self._metrics["train"][name].append(value)
        for name, value in counters.items():
            self._metrics["train"][name] = [value]

    def _count_tokens(self, num_tokens: int) -> None:
        """Add this process's tokens to those that the run has seen; a collective call."""
        counts = torch.tensor([num_tokens], device=self.accelerator.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(counts).sum().item())

    # The run

    @property
    def run_folder(self) -> Path:
        return Path(self.args.output_dir or ".")

    @property
    def steps_done(self) -> int:
        """Steps that are complete, in units of `step_key`."""
        return self.state.global_step

    @property
    def num_steps(self) -> int:
        """How many steps, in units of `step_key`, the run is to have."""
        return self.state.max_steps

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As transformers' `train`; a resumed run is not validated at its start again.

        Raises:
            ValueError: `resume_from_checkpoint` is True, and no checkpoint is whole.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoint_to_resume(self.run_folder, "last")
        self.args.eval_on_start = (
            self.args.eval_on_start
            and self.args.eval_every is not None
            and not resume_from_checkpoint
        )
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        # The best model is kept apart from the checkpoints: to the rotation none of them is the
        # best one, or it would keep an old one instead of the newest.
        self.state.best_global_step = None
        if is_best and self.args.save_best:
            folder = self.run_folder / BEST_MODEL_FOLDER
            self.save_model(str(folder), _internal_call=True)
            if self.accelerator.is_main_process:
                facts = {self.step_key: self.steps_done, **metrics}
                (folder / "best.json").write_text(json.dumps(facts, indent=2) + "\n")
        return is_best
