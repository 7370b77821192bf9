"""What all trainers do alike: optimizer updates of their own cut, the best model, the run's folder.

To the loop of transformers an update is one step without accumulation: `training_step` sees this
process's whole share of a train batch and cuts it itself, so the gradient does not depend on the
cut, and no micro-batch is wider than its own longest row.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from trl_r1zero.evaluation.files import json_text, valid_json, write_atomically
from trl_r1zero.generation import SamplingConfig
from trl_r1zero.generation.endings import warn_of_eos
from trl_r1zero.generation.vllm_server import VLLMServerError

from . import trl_compat
from .attention import packs_rows
from .base_config import StrictConfig
from .collapse import CollapseCallback
from .guarded import DivergenceCallback, guarded
from .memory_limits import out_of_memory
from .one_device import check_device, loaded_onto_one_device
from .optimizer_state import AveragesFirst, check_second_moment
from .policy_forward import PolicyForward
from .profile import ProfileCallback
from .progress import ProgressCallback, slow_bars_alone, use_progress_callback
from .prompt_rooms import prompt_rooms
from .results import add_results, write_card
from .rewards import GradeFn
from .run_folder import RunFolderCallback
from .sampling import PolicySampler, check_sharding
from .server_generation import ServerGeneration
from .server_place import connect_to_server
from .shared_prefixes import check_shares_prefixes
from .timing import StepTimer, peak_gpu_memory
from .validation import EvalDataset, Validator, named_sets
from .wandb_axes import use_wandb_axes

BEST_MODEL_FOLDER = "best"


class CoreTrainer(Trainer):
    """Comes before TRL's trainer among the bases.

    Args:
        model: As in TRL's trainer.
        args: The settings, as `StrictConfig.for_transformers` made them.
        given: The settings before that, which say how many rows are taken at a time.
        longest_row, width: As in `PolicyForward`.
        eval_dataset: One set of validation problems, or several by name. The first is the main one,
            the trainer's `eval_dataset`.
        others: Further arguments of TRL's trainer.

    Attributes:
        eval_sets: All sets by name; the name of a single one is "".
        step_key: What counts the steps of this kind of run; `step_name`: what a step is called.
        timer: Seconds of the parts of a step.
        sampler, validator, server: Of trainers that sample; the vLLM server, if one does it.
    """

    args: Any
    model: Any
    train_dataset: Dataset
    eval_dataset: Dataset | None
    step_key: ClassVar[str]
    step_name: ClassVar[str] = "update"
    sampler: PolicySampler
    validator: Validator
    server: ServerGeneration | None = None

    def __init__(
        self,
        *,
        model: Any,
        args: Any,
        given: StrictConfig,
        longest_row: Callable[[], int],
        width: Callable[[Any], int] | None = None,
        eval_dataset: EvalDataset = None,
        **others: Any,
    ) -> None:
        self.progress = ProgressCallback(self.step_key, self.step_name)
        self._given, self._longest_row, self._row_width = given, longest_row, width
        self.eval_sets = named_sets(eval_dataset)
        main = next(iter(self.eval_sets.values()))
        check_device(args)
        slow_bars_alone()
        with loaded_onto_one_device(args, model):
            super().__init__(model=model, args=args, eval_dataset=main, **others)
        trl_compat.set_train_batch_share(self)
        if self.accelerator.is_main_process:
            warn_of_eos(trl_compat.tokenizer_of(self), self.model)
        self.args.pack_rows = packs_rows(self.args.pack_rows, self.model.config)
        if self.args.share_prefixes:
            check_shares_prefixes(self.model.config)
        if self.optimizer is None:  # nobody brought one of their own
            check_second_moment(
                self.args.optim,
                self.args.adam_beta2,
                self.model.parameters(),
                self.accelerator.distributed_type,
            )
        self.timer = StepTimer(self.accelerator.device)
        self.divergence = DivergenceCallback()
        self.add_callback(self.divergence)
        self.add_callback(CollapseCallback())
        use_progress_callback(self, self.progress)
        use_wandb_axes(self)
        self.add_callback(RunFolderCallback())
        add_results(self)
        if self.args.profile:
            self.add_callback(ProfileCallback(self.progress))

    @cached_property
    def policy(self) -> PolicyForward:
        """The policy's forward passes; TRL's DPO trainer runs some while it is being made."""
        return PolicyForward(
            self.accelerator,
            self.args,
            model=lambda: self.model,
            reference=lambda: getattr(self, "ref_model", None),
            rows_per_microbatch=self._given.rows_per_microbatch,
            longest_row=self._longest_row,
            width=self._row_width,
            say=self.progress.say,
        )

    def set_up_sampling(self, grade: GradeFn, eval_sampling: SamplingConfig) -> None:
        """Set `sampler`, `validator` (which samples and grades as given) and, with use_vllm,
        `server`; a ValueError if a prompt leaves no room in the context."""
        tokenizer = trl_compat.tokenizer_of(self)
        datasets = {"train_data": self.train_dataset, "eval_data": self.eval_dataset}
        if isinstance(self.eval_dataset, dict):
            del datasets["eval_data"]
            datasets |= {f"eval_data.{name}": one for name, one in self.eval_dataset.items()}
        rooms = prompt_rooms(self.args, self.model.config, tokenizer)
        for name, data in datasets.items():
            if data is not None and (room := rooms.get(name.partition(".")[0])):
                room.check(name, data["prompt"])
        if self.args.use_vllm:
            self.server = connect_to_server(self.policy, tokenizer, self.timer)
            if self.server.sleep_level:
                self.add_callback(AveragesFirst())
        elif self.args.eval_every is not None:  # without validation, SFT samples nothing
            check_sharding(self.accelerator, self.args.ds3_gather_for_generation)
        self.sampler = PolicySampler(
            self.policy,
            tokenizer,
            wrapped_model=lambda: self.model_wrapped,
            num_updates=lambda: self.state.global_step,
            probe_prompt=lambda: self.train_dataset[0]["prompt"],
            rows_per_generation=self._given.per_device_eval_batch_size,
            server=self.server,
        )
        self.validator = Validator(
            self.sampler,
            eval_sampling,
            grade,
            self.args.eval_seed,
            self.args.num_eval_examples,
            self.run_folder / "evaluations",
            self.step_key,
            self.step_name,
        )

    def check_server(self) -> float:
        """See `PolicySampler.check_server`."""
        return self.sampler.check_server()

    @property
    def fused_lm_head(self) -> bool:
        """Whether log-probabilities come from TRL's fused head."""
        return self.policy.fused_lm_head

    # Optimizer updates

    def forward_and_backward(self, model: torch.nn.Module, micro_batches: Sequence[Any]) -> Tensor:
        """The loss of a train batch, without graph, and its gradient: the sum over micro-batches.

        Every process has equally many of them.
        """
        self.policy.make_room()
        loss = torch.zeros((), device=self.accelerator.device)
        try:
            for number, micro_batch in enumerate(micro_batches, start=1):
                loss += self._backward(model, micro_batch, is_last=number == len(micro_batches))
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(out_of_memory(self.policy.limits, error)) from error
        self.divergence.loss = loss
        return loss

    def _backward(self, model: torch.nn.Module, micro_batch: Any, *, is_last: bool) -> Tensor:
        trl_compat.set_last_backward(self.accelerator, is_last)
        # DeepSpeed tells the last backward from the others by that flag alone.
        syncs = is_last or self.accelerator.distributed_type == DistributedType.DEEPSPEED
        with nullcontext() if syncs else self.accelerator.no_sync(model):
            with self.timer.part("forward"):
                loss: Any = self.compute_loss(model, micro_batch)
            with self.timer.part("backward"):
                self.accelerator.backward(loss)
        return loss.detach()

    def mean_over_processes(self, *numbers: float) -> list[float]:
        """The mean of each number over the processes; a collective call."""
        local = torch.tensor(
            numbers,
            dtype=torch.float64 if self.accelerator.device.type != "mps" else torch.float32,
            device=self.accelerator.device,
        )
        return self.accelerator.reduce(local, reduction="mean").tolist()

    def count_tokens(self, num_tokens: int) -> None:
        """Add this process's tokens to those that the run has seen; a collective call."""
        counts = torch.tensor([num_tokens], device=self.accelerator.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(counts).sum().item())

    def log_update(self, metrics: dict[str, float], step: int, parts: Sequence[str]) -> None:
        """Add an update's metrics to its line, with the seconds of `parts`, and tokens per second
        in place of `tokens`."""
        seconds = self.timer.collect()
        metrics["tokens_per_second"] = metrics.pop("tokens") / seconds["step"]
        # A part that did not run in this update (sampling, in a second epoch) took 0 seconds.
        metrics |= {f"seconds/{part}": seconds.get(part, 0.0) for part in parts}
        metrics |= peak_gpu_memory(self.accelerator.device)
        counters = {self.step_key: step, "num_tokens": self.state.num_input_tokens_seen}
        trl_compat.add_to_update_line(self, metrics, counters)

    def evaluate(
        self,
        eval_dataset: EvalDataset = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """What `Validator.run` finds on the main set, each metric with the prefix; of several sets
        also what it finds on each, as `validation/NAME/METRIC`."""
        sets = named_sets(eval_dataset)
        if eval_dataset is None:
            sets = self.eval_sets | {next(iter(self.eval_sets)): self.eval_dataset}
        main = next(iter(sets))
        found = {
            name: self.validator.run(dataset, self.steps_done, "" if name == main else name)
            for name, dataset in sets.items()
        }
        return self.log_validation(found[main], metric_key_prefix, found if main else {})

    def log_validation(
        self,
        results: Mapping[str, float],
        prefix: str,
        of_sets: Mapping[str, Mapping[str, float]] | None = None,
    ) -> dict[str, float]:
        """Log what a validation found, with the prefix, and tell the callbacks; `of_sets`: of each
        of several sets."""
        metrics = {f"{prefix}_{name}": value for name, value in results.items()}
        for set_name, of_set in (of_sets or {}).items():
            metrics |= {f"validation/{set_name}/{name}": x for name, x in of_set.items()}
        # Not TRL's `log`, which adds whatever training has collected since its last line.
        Trainer.log(self, {**metrics, self.step_key: self.steps_done})
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

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
        """As transformers' `train`, within `guarded`; a resumed run is not validated at its start.

        Args:
            resume_from_checkpoint: None or False for a new run, True or `last`, `auto` (the last
                checkpoint if there is one), or a checkpoint's path.
            trial, ignore_keys_for_eval: As in transformers.

        Raises:
            ValueError, DivergedError, RunStopped: See `guarded`.
            VLLMServerError: The vLLM server refused a request, or is gone and not this trainer's to
                start again. The run is saved first.
        """
        server = self.server.kept() if self.server is not None else nullcontext()
        with server, guarded(self, resume_from_checkpoint, lambda: self.may_stop) as checkpoint:
            self.args.eval_on_start = (
                self.args.eval_on_start and self.args.eval_every is not None and not checkpoint
            )
            self.begin(checkpoint)
            try:
                return super().train(checkpoint, trial, ignore_keys_for_eval)
            except VLLMServerError as error:
                raise VLLMServerError(f"{error}\n{self._save_stopped_run()}") from error

    def begin(self, checkpoint: str | None) -> None:
        """What comes before the first update of a run, or of one that goes on."""

    @property
    def may_stop(self) -> bool:
        """Whether a run that stops after the current update can go on from there."""
        return True

    def _save_stopped_run(self) -> str:
        """A checkpoint of the last complete update, unless there is one; what to tell people."""
        if self.state.global_step == 0:
            return "Nothing was trained yet; start the run again once the server works."
        folder = self.run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not (folder / TRAINER_STATE_NAME).is_file():
            trl_compat.save_checkpoint(self)
        return (
            f"The run stopped after {self.steps_done} of {self.num_steps} "
            f"{self.step_name}s and is saved in {folder}; once the server works, go on "
            "with --resume_from_checkpoint last."
        )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        # The best model is kept apart from the checkpoints: to the rotation none of them is the
        # best one, or it would keep an old one instead of the newest.
        self.state.best_global_step = None
        if is_best and self.args.save_best:
            folder = self.run_folder / BEST_MODEL_FOLDER
            self.save_model(str(folder), _internal_call=True)
            if self.accelerator.is_main_process:
                chosen_by = {"chosen_by": name} if (name := next(iter(self.eval_sets))) else {}
                facts = {self.step_key: self.steps_done, **chosen_by, **metrics}
                write_atomically(folder / "best.json", json_text(valid_json(facts)))
                write_card(self.args, folder)
        return is_best

    def create_model_card(  # type: ignore[override]  # TRL's arguments
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write the card of the run's model; it says what the run's files do, and nothing else."""
        if self.accelerator.is_main_process:
            write_card(self.args)
