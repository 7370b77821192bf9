r"""Direct preference optimisation, on TRL's `DPOTrainer`.

The loss of a train batch of B pairs is the mean of their losses (`dpo_loss`; Rafailov et al. 2023,
arXiv:2305.18290, eq. 7), each of which is `compute_per_instance_dpo_loss` of that pair:

.. math:: L = -\frac{1}{B} \sum_b \ln \sigma\Bigl(
          \beta \ln \frac{\pi_\theta(y_w \mid x)}{\pi_{ref}(y_w \mid x)}
          - \beta \ln \frac{\pi_\theta(y_l \mid x)}{\pi_{ref}(y_l \mid x)}\Bigr)

TRL and transformers load policy and reference, compute the reference's log-probabilities
beforehand, run the optimizer loop, save and log. Replaced are:

* rows: an instruction and two responses in the Alpaca template, tokenised as in `preference` and
  never cut: one that is too long is dropped and counted, or an error;
* updates: one sees its whole train batch and cuts it itself, so a short last batch and any number
  of processes give the loss of the formula;
* validation: the mean over all pairs, with standard errors, also of how often the policy's own
  log-probabilities put the chosen response first.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset, Features, List, Value, load_from_disk
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOTrainer

from trl_r1zero.functional import dpo_loss

from .core_trainer import CoreTrainer
from .epoch_configs import R1ZeroDPOConfig
from .epochs import (
    PairMicroBatch,
    PairRow,
    batch_loader,
    make_pair_microbatch,
    num_updates,
    out_of_loss,
    train_batches,
    without_overlong,
)
from .preference import encode_pair, sum_over_responses
from .timing import StepTimer
from .trl_compat import fingerprint_of, tokenizer_of
from .validation import require_for_validation, require_texts

# In the run's folder: the pairs as tokens, and the reference's log-probabilities.
REFERENCE_FOLDER = "reference"
COLUMNS = ("instruction", "chosen", "rejected")
# What is added up over pairs: metric -> key of `dpo_loss`'s metadata.
_OF_METADATA = {
    "accuracy": "accuracies",
    "log_prob_accuracy": "log_prob_accuracies",
    "margin": "margins",
    "chosen_reward": "chosen_rewards",
    "rejected_reward": "rejected_rewards",
}
_SUMS = ("pairs", "loss", *_OF_METADATA)


class R1ZeroDPOTrainer(CoreTrainer, DPOTrainer):
    """Trains a causal language model on instructions with a chosen and a rejected response.

    Args:
        model: The model to begin with, or its path or hub id; it is the reference too.
        args: The settings.
        train_dataset: Columns `instruction` (plain text, without template), `chosen` and
            `rejected`.
        eval_dataset: The same; needed unless `eval_every` is None.
        ref_model: Another reference. Unset: the model that the run begins with.
        processing_class: The tokenizer; the model's own by default.
        callbacks, optimizers, peft_config, quantization_config: As in TRL's trainer.

    Raises:
        ValueError: A data set lacks a column or has no row, a row is too long and `overlong` is
            `error`, the tokenizer cannot end a response, or there is no such `ref_device`.
    """

    args: R1ZeroDPOConfig
    step_key = "dpo_step"

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: R1ZeroDPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        ref_model: PreTrainedModel | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
    ) -> None:
        _check_pairs("train_dataset", train_dataset)  # TRL looks at the first row at once
        require_for_validation(args.eval_every, eval_dataset=eval_dataset)
        if isinstance(eval_dataset, dict):
            raise ValueError(f"eval_dataset: got {len(eval_dataset)} sets; DPO takes one data set")
        args.check_ref_device_is_there()
        given, args = args, args.for_transformers()
        args.ignore_data_skip = True  # `_train_batches` begins where the run is
        # TRL would take the train batch size, which here is no micro-batch's.
        args.precompute_ref_batch_size = (
            args.precompute_ref_batch_size or args.per_device_eval_batch_size
        )
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
            quantization_config=quantization_config,
            given=given,
            longest_row=lambda: 2 * max(row.length for row in self.rows),
            # Both sequences of a pair are as wide as the longer one at least.
            width=lambda row: 2 * row.length,
        )
        reference: Any = self.ref_model
        if args.ref_device is not None and reference is not None:
            reference.to(args.ref_device)
        self.rows = _rows_of(self.train_dataset)
        self.args.max_steps = num_updates(len(self.rows), self.args)
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64)

    # Rows

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str
    ) -> Dataset:
        """The pairs as token ids, in the columns in which TRL expects them."""
        _check_pairs(f"{dataset_name}_dataset", dataset)
        texts = zip(*(dataset[column] for column in COLUMNS), strict=True)
        rows = [encode_pair(*pair, tokenizer_of(self)) for pair in texts]
        rows = without_overlong(rows, [row.length for row in rows], args.max_length, args.overlong)
        columns = {
            "prompt_ids": [row.shared_ids for row in rows],
            "chosen_ids": [row.chosen_ids for row in rows],
            "rejected_ids": [row.rejected_ids for row in rows],
        }
        tokens = Dataset.from_dict(columns, Features(dict.fromkeys(columns, List(Value("int32")))))
        if args.precompute_ref_log_probs:
            return _on_disk(tokens, Path(args.output_dir, REFERENCE_FOLDER), dataset_name, args)
        return tokens

    def cut(self, rows: Sequence[PairRow]) -> list[PairMicroBatch]:
        """This process's micro-batches of some pairs."""
        own = self.policy.plan(rows, out_of_loss)[self.policy.rank]
        pad_id = tokenizer_of(self).pad_token_id
        return [make_pair_microbatch(part, pad_id).to(self.accelerator.device) for part in own]

    def get_train_dataloader(self) -> DataLoader:
        """Yields one train batch after another, from the current update; on each process all."""
        return batch_loader(lambda: train_batches(self.rows, self.args, self.state.global_step))

    # The reference

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B,) of chosen and rejected responses under the reference before
        training, for TRL; the inputs are of its collator: `input_ids`, `attention_mask` and
        `completion_mask`, each (2B, T + 1)."""
        ids_2BT, mask_2BT = inputs["input_ids"], inputs["completion_mask"]
        batch = PairMicroBatch(
            input_ids=ids_2BT[:, :-1],
            labels=ids_2BT[:, 1:],
            response_mask=mask_2BT[:, 1:].bool(),
            lengths=(inputs["attention_mask"].sum(dim=1) - 1).tolist(),
            ref_log_probs=None,
            in_loss=torch.ones(len(ids_2BT) // 2, dtype=torch.bool),
        )
        return self._reference_log_probs(batch, model)

    def _reference_log_probs(
        self, micro_batch: PairMicroBatch, model: Any = None
    ) -> tuple[Tensor, Tensor]:
        """On the policy's device: what is known, or else under `model`, by default the reference in
        memory; with PEFT that is the policy without what it has learned."""
        if micro_batch.ref_log_probs is not None:
            chosen_B, rejected_B = micro_batch.ref_log_probs.chunk(2)
            return chosen_B, rejected_B
        with torch.no_grad():
            if self.ref_model is None and is_peft_model(self.model):
                with self.policy.base_policy():
                    return self._sums_of_responses(model or self.model, micro_batch)
            return self._sums_of_responses(model or self.ref_model, micro_batch)

    def _sums_of_responses(self, model: Any, micro_batch: PairMicroBatch) -> tuple[Tensor, Tensor]:
        device = self.accelerator.device
        micro_batch = micro_batch.to(next(model.parameters()).device)
        log_probs_2BT = self.policy.log_probs(model, micro_batch, temperature=1.0)["log_probs"]
        chosen_B, rejected_B = sum_over_responses(log_probs_2BT, micro_batch.response_mask)
        return chosen_B.to(device), rejected_B.to(device)

    # Optimizer updates

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One optimizer update: forward and backward of every micro-batch of the train batch, whose
        loss (on this process; the mean over processes is the loss) it returns."""
        model.train()
        with self.timer.part("step"):
            self._num_pairs = len(inputs) / self.policy.processes
            loss = self.forward_and_backward(model, self.cut(inputs))
        self._record_update(inputs)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """A micro-batch's share of the loss of its train batch."""
        losses_B, sums = self._losses(model, inputs)
        self._sums += sums.sum(dim=0).cpu()
        return (losses_B * inputs.in_loss).sum() / self._num_pairs

    def _losses(self, model: Any, micro_batch: PairMicroBatch) -> tuple[Tensor, Tensor]:
        """The loss of each pair, and (B, K) numbers of `_SUMS`, 0 for pairs not in the loss."""
        policy_B, policy_rejected_B = self._sums_of_responses(model, micro_batch)
        ref_B, ref_rejected_B = self._reference_log_probs(micro_batch)
        of_pairs = policy_B, policy_rejected_B, ref_B, ref_rejected_B
        losses_B, metadata = dpo_loss(*of_pairs, self.args.beta)
        columns = [losses_B.detach(), *(metadata[name] for name in _OF_METADATA.values())]
        numbers_BK = torch.stack([torch.ones_like(losses_B), *columns], dim=1)
        return losses_B, numbers_BK * micro_batch.in_loss.unsqueeze(1)

    def _record_update(self, batch: Sequence[PairRow]) -> None:
        """Metrics of one optimizer update, over all processes."""
        num_tokens = sum(row.num_tokens for row in self.policy.own_rows(batch))
        self.count_tokens(num_tokens)
        *sums, tokens = self.mean_over_processes(*self._sums.tolist(), num_tokens)
        self._sums.zero_()
        # The loss is in the line already, by transformers' loop.
        pairs, _, *others = sums
        metrics = {name: value / pairs for name, value in zip(_OF_METADATA, others, strict=True)}
        metrics["tokens"] = tokens * self.policy.processes
        self.log_update(metrics, self.state.global_step + 1, ["step", "forward", "backward"])

    # Validation

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The loss and the accuracies over all validation pairs.

        Args:
            eval_dataset: Other pairs than those that the trainer was given; only where a reference
                is in memory.
            ignore_keys: Not used.
            metric_key_prefix: Of the metrics' names.

        Returns:
            Means over pairs, each with the prefix: `loss`; `accuracy`, the share of pairs whose
            chosen response has the higher implicit reward (ties count as wrong, so it is 0 before
            training); `log_prob_accuracy`, the same of the policy's own log-probability; `margin`,
            `chosen_reward` and `rejected_reward`, in nats; each with a standard error
            (`..._stderr`); `num_pairs` and `seconds`.

        Raises:
            ValueError: There are no pairs, or no reference for other ones.
        """
        if eval_dataset is None:
            if self.eval_dataset is None:
                raise ValueError("there is nothing to validate on: eval_dataset is missing")
            rows = _rows_of(self.eval_dataset)
        elif self.args.precompute_ref_log_probs:
            raise ValueError(
                "there is no reference in memory for other pairs, as precompute_ref_log_probs is "
                "true; give them to the trainer as eval_dataset"
            )
        else:
            rows = _rows_of(self._prepare_dataset(eval_dataset, None, self.args, "eval"))
        timer = StepTimer(self.accelerator.device)
        with timer.part("evaluation"):
            numbers = self._numbers_of(rows)
        results = _means_and_errors(numbers)
        results |= {"num_pairs": len(rows), "seconds": timer.collect()["evaluation"]}
        return self.log_validation(results, metric_key_prefix)

    def _numbers_of(self, rows: Sequence[PairRow]) -> Tensor:
        """(N, K) numbers of `_SUMS` of all processes' rows; a collective call."""
        model, was_training = self.model_wrapped, self.model.training
        model.eval()
        with torch.no_grad():
            parts = [self._losses(model, batch)[1] for batch in self.cut(rows)]
        model.train(was_training)
        # Processes have different numbers of rows.
        local = torch.cat(parts).cpu().tolist()
        numbers_NK = torch.tensor(gather_object(local), dtype=torch.float64)
        return numbers_NK[numbers_NK[:, 0] > 0]


def _on_disk(dataset: Dataset, folder: Path, name: str, args: R1ZeroDPOConfig) -> Dataset:
    """The same from a folder that all processes see, and that a resumed run finds again.

    TRL keeps reference log-probabilities beside a data set's file; those of one that is in memory
    only would lie where no other process, and no resumed run, looks.
    """
    path = folder / f"{name}-{fingerprint_of(dataset)}"
    with args.main_process_first(local=False, desc="writing of the pairs"):
        if args.process_index == 0 and not path.is_dir():
            for stale in folder.glob(f"{name}-*"):
                shutil.rmtree(stale)
            part = folder / f"{name}-part"
            dataset.save_to_disk(part)
            part.rename(path)
        return load_from_disk(path)


def _check_pairs(name: str, dataset: Dataset) -> None:
    if missing := set(COLUMNS) - set(dataset.column_names):
        raise ValueError(
            f"{name} lacks the columns {sorted(missing)}, it has {dataset.column_names}; give it "
            f"{', '.join(COLUMNS)}"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} has no rows")
    require_texts(name, dataset, COLUMNS)


def _rows_of(dataset: Dataset) -> list[PairRow]:
    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
    known = [dataset[name] for name in columns if name in dataset.column_names]
    return [PairRow(*row) for row in zip(*known, strict=True)]


def _means_and_errors(numbers_NK: Tensor) -> dict[str, float]:
    """Mean and standard error over pairs of every number but their count."""
    n = len(numbers_NK)
    results = {}
    for name, values_N in zip(_SUMS[1:], numbers_NK.T[1:], strict=True):
        results[name] = values_N.mean().item()
        if n > 1:
            results[f"{name}_stderr"] = values_N.std().item() / math.sqrt(n)
    return results
