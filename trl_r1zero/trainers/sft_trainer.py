r"""Supervised fine-tuning on reasoning traces, on TRL's `SFTTrainer`.

The loss of a train batch of B rows is minus the sum of the log-probabilities of each response's
tokens over `normalize_constant`, averaged over the rows (`sft_microbatch_loss`):

.. math:: L = -\frac{1}{B} \sum_b \frac{\sum_t m_{bt} \ln \pi_\theta(y_{bt})}{c}

What comes from TRL and transformers: loading, PEFT, Accelerate and DeepSpeed, the fused head, the
optimizer loop, checkpoints, logging. What is replaced, and why:

* a row is a prompt and a response that are tokenised apart, and it is never cut: one that is too
  long is dropped and counted, or an error;
* an update sees its whole train batch and cuts it itself (see `core_trainer`), so a short last
  batch and any number of processes give the loss of the formula, not a mean of means;
* validation samples answers and grades them, as the other trainers do: TRL's is the loss on a data
  set of the same kind.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTTrainer

from trl_r1zero.data.tokenization import tokenize_separately
from trl_r1zero.functional import sft_microbatch_loss
from trl_r1zero.grading import Grader

from .epochs import EpochsMixin, without_overlong
from .rewards import TRLReward, grade_with, grader_of
from .sampling_trainer import SamplingTrainer
from .sft_config import R1ZeroSFTConfig
from .train_rows import SFTMicroBatch, TrainRow, make_sft_microbatch
from .validation import require_columns


class R1ZeroSFTTrainer(EpochsMixin[TrainRow], SamplingTrainer, SFTTrainer):
    """Trains a causal language model on prompts and responses.

    Args:
        model: A model, or the path or hub id of one.
        args: The settings.
        train_dataset: Columns `prompt` (formatted text) and `response`.
        eval_dataset: Columns `prompt` and `ground_truth`; needed unless `eval_every` is None.
        reward_fn: `(response, ground_truth) -> dict` with `reward` and its parts, or a `TRLReward`;
            needed unless `eval_every` is None.
        processing_class: The tokenizer; the model's own by default.
        stop: Strings that end a sampled completion, kept in it; a `Prompt` carries them.
        callbacks, optimizers, peft_config, quantization_config: As in TRL's trainer.

    Raises:
        ValueError: A data set lacks a column or has no row to train on, a row is too long and
            `overlong` is `error`, or settings contradict one another.
        VLLMServerError: With use_vllm, there is no server, or it cannot be started.
    """

    args: R1ZeroSFTConfig
    step_key = "train_step"
    train_columns: tuple[str, ...] = ("prompt", "response")

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: R1ZeroSFTConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        reward_fn: Callable[[str, Any], dict[str, float]] | TRLReward | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        stop: Sequence[str] = (),
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
    ) -> None:
        require_columns("train_dataset", train_dataset, self.train_columns)
        if len(train_dataset) == 0:
            raise ValueError("train_dataset has no rows; there is nothing to train on")
        require_columns("eval_dataset", eval_dataset)
        for name, value in (("eval_dataset", eval_dataset), ("reward_fn", reward_fn)):
            if args.eval_every is not None and value is None:
                raise ValueError(
                    f"eval_every is set, but there is no {name}; give one, or set it to None"
                )
        self.grader = None if reward_fn is None else _as_grader(reward_fn)
        self._grade = _cannot_grade if self.grader is None else grade_with(self.grader)
        self._take_limits(args)
        args = args.for_transformers()
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.ignore_data_skip = True  # `_train_batches` begins where the run is
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
            quantization_config=quantization_config,
        )
        self._train_batch_size = args.train_batch_share
        self.eval_sampling = args.validation_sampling(tuple(stop))
        self._set_up()
        self._set_up_rows(tuple(stop))

    # Rows

    def _set_up_rows(self, stop: tuple[str, ...]) -> None:
        self.rows = self._tokenize_rows()
        self.args.max_steps = self._num_updates()

    def _longest_row(self) -> int:
        return max(row.num_tokens for row in self.rows)

    def _tokenize_rows(self) -> list[TrainRow]:
        """The rows that are trained on, in the order of the data set."""
        data = self.train_dataset
        prompt_ids, response_ids = tokenize_separately(
            list(data["prompt"]), list(data["response"]), self._tokenizer
        )
        if self.args.append_eos:
            if self._tokenizer.eos_token_id is None:
                raise ValueError("append_eos is true, but the tokenizer has no eos token")
            response_ids = [[*ids, self._tokenizer.eos_token_id] for ids in response_ids]
        rows = [TrainRow(*ids) for ids in zip(prompt_ids, response_ids, strict=True)]
        empty = [number for number, row in enumerate(rows) if not row.response_ids]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(rows)} responses have no tokens, the first is that of row "
                f"{empty[0]}; remove such rows, or set append_eos to true"
            )
        return without_overlong(
            rows, [row.num_tokens for row in rows], self.args.max_length, self.args.overlong
        )

    # Optimizer updates

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One optimizer update: forward and backward of every micro-batch of the train batch.

        Returns:
            The loss of the train batch (on this process; the mean over processes is the loss).
        """
        model.train()
        with self.timer.part("step"):
            processes = self._rank_and_size()[1]
            micro_batches = [
                make_sft_microbatch(
                    part,
                    pad_token_id=self._tokenizer.pad_token_id,
                    device=self.accelerator.device,
                    num_sequences=len(inputs) / processes,
                )
                for part in self._parts(inputs)
            ]
            loss = self._forward_and_backward(model, micro_batches)
        self._record_update(inputs)
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """A micro-batch's share of the loss of its train batch."""
        assert isinstance(inputs, SFTMicroBatch)
        output = self._log_probs(model, inputs, temperature=1.0, return_token_entropy=True)
        loss, metadata = sft_microbatch_loss(
            output["log_probs"],
            inputs.response_mask,
            num_sequences=inputs.num_sequences,
            normalize_constant=self.args.normalize_constant,
        )
        mask_BT = inputs.response_mask
        self._update_metrics.add(
            trained_tokens=metadata["num_response_tokens"],
            nll=-output["log_probs"].detach()[mask_BT].sum(),
            entropy=output["token_entropy"].detach()[mask_BT].sum(),
        )
        return loss

    def _record_update(self, batch: Sequence[TrainRow]) -> None:
        """Metrics of one optimizer update, over all processes."""
        rank, processes = self._rank_and_size()
        rows = batch[rank::processes]
        num_tokens = sum(row.num_tokens for row in rows)
        self._count_tokens(num_tokens)
        metrics = self._update_metrics.collect_sums(
            {"rows": len(rows), "tokens": num_tokens},
            [len(row.response_ids) for row in rows],
            self.accelerator,
        )
        seconds = self.timer.collect()
        metrics["tokens_per_second"] = metrics.pop("tokens") / seconds["step"]
        parts = ["step", "forward", "backward", *self._server_parts]
        metrics |= {f"seconds/{part}": seconds.get(part, 0.0) for part in parts}
        self._log_with_update(
            metrics,
            {self.step_key: self.step_at_work, "num_tokens": self.state.num_input_tokens_seen},
        )


def _as_grader(reward_fn: Any) -> Grader:
    grader = grader_of(reward_fn)
    if grader is None:
        raise TypeError(
            f"reward_fn must be a function of (response, ground_truth) or a TRLReward, got "
            f"{reward_fn!r}"
        )
    return grader


def _cannot_grade(examples: Any, completions: Any) -> NoReturn:
    raise ValueError("there is no reward_fn to grade with; give one to the trainer")
