r"""Supervised fine-tuning on reasoning traces, on TRL's `SFTTrainer`.

The loss of a train batch of B rows is minus the sum of the log-probabilities of each response's
tokens over `normalize_constant`, averaged over the rows (`sft_microbatch_loss`):

.. math:: L = -\frac{1}{B} \sum_b \frac{\sum_t m_{bt} \ln \pi_\theta(y_{bt})}{c}

TRL and transformers load, wrap, run the optimizer loop, save and log. Replaced are:

* rows: prompt and response are tokenised apart and never cut: one that is too long is dropped and
  counted, or an error;
* updates: one sees its whole train batch and cuts it itself, so a short last batch and any number
  of processes give the loss of the formula;
* validation: it samples answers and grades them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTTrainer

from trl_r1zero.data.tokenization import tokenize_separately
from trl_r1zero.functional import sft_microbatch_loss

from .core_trainer import CoreTrainer
from .epoch_configs import R1ZeroSFTConfig
from .epochs import (
    TrainRow,
    batch_loader,
    make_sft_microbatch,
    num_updates,
    out_of_loss,
    train_batches,
    without_overlong,
)
from .microbatches import PaddedRows
from .rewards import TRLReward, grade_with, grader_of
from .trl_compat import tokenizer_of
from .update_metrics import UpdateMetrics
from .validation import EvalDataset, require_columns, require_for_validation


class R1ZeroSFTTrainer(CoreTrainer, SFTTrainer):
    """Trains a causal language model on prompts and responses.

    Args:
        model: A model, or the path or hub id of one.
        args: The settings.
        train_dataset: Columns `prompt` (formatted text) and `response`.
        eval_dataset: Columns `prompt` and `ground_truth`, in one set or in several by name, of
            which the first picks the best model; needed unless `eval_every` is None.
        reward_fn: `(response, ground_truth) -> dict` with `reward` and its parts, or a `TRLReward`;
            needed unless `eval_every` is None.
        processing_class: The tokenizer; the model's own by default.
        stop: Strings, and ids of tokens, that end a sampled completion; a `Prompt` carries them.
            The first id also ends each response that is trained on, as chat models expect it.
        callbacks, optimizers, peft_config, quantization_config: As in TRL's trainer.

    Raises:
        ValueError: A data set lacks a column or has no row to train on, a row is too long and
            `overlong` is `error`, a validation prompt leaves no room in the context, or settings
            contradict one another.
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
        eval_dataset: EvalDataset = None,
        reward_fn: Callable[[str, Any], dict[str, float]] | TRLReward | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        stop: Sequence[str | int] = (),
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
    ) -> None:
        require_columns("train_dataset", train_dataset, self.train_columns)
        if len(train_dataset) == 0:
            raise ValueError("train_dataset has no rows; there is nothing to train on")
        require_columns("eval_dataset", eval_dataset)
        require_for_validation(args.eval_every, eval_dataset=eval_dataset, reward_fn=reward_fn)
        self.grader = None if reward_fn is None else grader_of(reward_fn)
        if reward_fn is not None and self.grader is None:
            raise TypeError(
                "reward_fn must be a function of (response, ground_truth) or a TRLReward, got "
                f"{reward_fn!r}"
            )
        self.grade = _cannot_grade if self.grader is None else grade_with(self.grader)
        given, args = args, args.for_transformers()
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
            given=given,
            longest_row=self.longest_row,
        )
        stop = tuple(stop)
        self.set_up_sampling(self.grade, args.validation_sampling(stop))
        self.update_metrics = UpdateMetrics()
        self.set_up_rows(stop)

    # Rows

    def set_up_rows(self, stop: tuple[str | int, ...]) -> None:
        """Make the rows that are trained on; `stop` ends what is sampled for it."""
        self.rows = self._tokenize_rows(stop)
        self.args.max_steps = num_updates(len(self.rows), self.args)

    def longest_row(self) -> int:
        """Tokens of the longest row that is trained on, at most."""
        return max(row.num_tokens for row in self.rows)

    def train_batches(self) -> Iterator[list[TrainRow]]:
        """One train batch after another, from the current update."""
        return train_batches(self.rows, self.args, self.state.global_step)

    def get_train_dataloader(self) -> DataLoader:
        """Yields `train_batches`; on each process all of each."""
        return batch_loader(self.train_batches)

    @property
    def current_step(self) -> int:
        """The step, from 1, that the current update belongs to."""
        return self.state.global_step + 1

    def _tokenize_rows(self, stop: tuple[str | int, ...]) -> list[TrainRow]:
        """The rows that are trained on, in the order of the data set."""
        data, tokenizer = self.train_dataset, tokenizer_of(self)
        prompt_ids, response_ids = tokenize_separately(
            list(data["prompt"]), list(data["response"]), tokenizer
        )
        ends = [token for token in stop if isinstance(token, int)]
        if self.args.append_eos:
            if tokenizer.eos_token_id is None:
                raise ValueError("append_eos is true, but the tokenizer has no eos token")
            ends.append(tokenizer.eos_token_id)
        if ends:
            # Some authors of responses have written the end token themselves.
            response_ids = [
                ids if ids and ids[-1] in ends else [*ids, ends[0]] for ids in response_ids
            ]
        rows = [TrainRow(*ids) for ids in zip(prompt_ids, response_ids, strict=True)]
        if empty := [number for number, row in enumerate(rows) if not row.response_ids]:
            raise ValueError(
                f"{len(empty)} of {len(rows)} responses have no tokens, the first is that of row "
                f"{empty[0]}; remove such rows, or set append_eos to true"
            )
        lengths = [row.num_tokens for row in rows]
        return without_overlong(rows, lengths, self.args.max_length, self.args.overlong)

    # Optimizer updates

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One optimizer update: forward and backward of every micro-batch of the train batch, whose
        loss (on this process; the mean over processes is the loss) it returns."""
        model.train()
        with self.timer.part("step"):
            loss = self.forward_and_backward(model, self.cut(inputs))
        self._record_update(inputs)
        return loss

    def cut(self, rows: Sequence[TrainRow]) -> list[PaddedRows]:
        """This process's micro-batches of a train batch."""
        # With this denominator the mean over processes is the loss.
        self._num_sequences = len(rows) / self.policy.processes
        own = self.policy.plan(rows, out_of_loss)[self.policy.rank]
        pad_id = self.sampler.tokenizer.pad_token_id
        return [make_sft_microbatch(part, pad_id).to(self.accelerator.device) for part in own]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """A micro-batch's share of the loss of its train batch."""
        output = self.policy.log_probs(model, inputs, temperature=1.0, return_token_entropy=True)
        mask_BT = inputs.response_mask
        loss, metadata = sft_microbatch_loss(
            output["log_probs"],
            mask_BT,
            num_sequences=self._num_sequences,
            normalize_constant=self.args.normalize_constant,
        )
        self.update_metrics.add(
            trained_tokens=metadata["num_response_tokens"],
            nll=-output["log_probs"].detach()[mask_BT].sum(),
            entropy=output["token_entropy"].detach()[mask_BT].sum(),
        )
        return loss

    def _record_update(self, batch: Sequence[TrainRow]) -> None:
        """Metrics of one optimizer update, over all processes."""
        rows = self.policy.own_rows(batch)
        num_tokens = sum(row.num_tokens for row in rows)
        self.count_tokens(num_tokens)
        lengths = [len(row.response_ids) for row in rows]
        sums = {"rows": len(rows), "tokens": num_tokens}
        metrics = self.update_metrics.collect_sums(sums, lengths, self.accelerator)
        parts = ["step", "forward", "backward", *self.sampler.timed_parts]
        self.log_update(metrics, self.current_step, parts)


def _cannot_grade(examples: Any, completions: Any) -> NoReturn:
    raise ValueError("there is no reward_fn to grade with; give one to the trainer")
