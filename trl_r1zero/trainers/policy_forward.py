"""The policy's forward passes: how many rows at a time, and the log-probabilities of their tokens.

What a process may take at a time follows from the settings or from memory (`memory_limits`); no
result depends on it.
"""

import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from torch import Tensor
from trl.trainer.utils import use_adapter

from trl_r1zero.devices.training_setup import sharding_of
from trl_r1zero.functional import get_response_log_probs

from .memory_limits import (
    TrainingMemory,
    bytes_to_train_with,
    forward_limits,
    microbatch_limits,
    training_memory_of,
)
from .microbatches import MicroBatchLimits, PaddedRows, Row, plan_microbatches
from .shared_prefixes import prefix_tree

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Row)


@dataclass
class PolicyForward:
    """Forward passes of a policy and its reference."""

    accelerator: Accelerator  # the trainer's
    args: Any  # its settings
    # The policy as it is now; the loop of transformers may wrap it in something.
    model: Callable[[], Any]
    reference: Callable[[], Any]  # a reference model that is in memory, or None
    rows_per_microbatch: int | None  # rows of a micro-batch at most; None where tokens alone count
    # Tokens of the longest row that may be trained on, the same on every process; asked for only
    # where memory decides.
    longest_row: Callable[[], int]
    # Tokens of a row, with the padding that it has in any case; None: its `num_tokens`.
    width: Callable[[Any], int] | None = None
    say: Callable[[str], None] = print  # shows a line to the user
    # Called before forward passes: whoever shares the device gives up its memory; a collective
    # call.
    make_room: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes

    # What fits

    @property
    def limits(self) -> MicroBatchLimits:
        """Of a micro-batch."""
        tokens = self.args.max_tokens_per_microbatch
        budget = self.token_budget if tokens is None else None
        limits = microbatch_limits(
            self.rows_per_microbatch, tokens, budget, packed=self.args.pack_rows
        )
        limits = replace(limits, shared=self.args.share_prefixes)
        return limits if self.width is None else replace(limits, width=self.width)

    @property
    def forward_limits(self) -> MicroBatchLimits:
        """Of a forward without graph, for which there is more room than for a micro-batch."""
        return forward_limits(self.limits, self.memory)

    @cached_property
    def memory(self) -> TrainingMemory | None:
        """What decides how much fits into memory; None where that is not known.

        A collective call, the first time: processes agree on what the fullest device has. That is
        measured once a server on it sleeps; one that stays awake has its part already.
        """
        if bytes_to_train_with(self.accelerator.device) is None:
            return None
        self.make_room()
        mine = bytes_to_train_with(self.accelerator.device)
        local = torch.tensor([mine], device=self.accelerator.device)
        model, reference = self.accelerator.unwrap_model(self.model()), self.reference()
        plugin = self.accelerator.state.deepspeed_plugin
        return training_memory_of(
            model,
            self.args,
            int(self.accelerator.gather(local).min().item()),
            longest_row=self.longest_row(),
            reference_model=reference is not None and reference.device == model.device,
            processes=self.processes,
            sharding=sharding_of(
                str(self.accelerator.distributed_type.value), plugin and plugin.zero_stage
            ),
        )

    @cached_property
    def token_budget(self) -> int | None:
        """Tokens of a micro-batch that fit into memory; None where that is not known."""
        if self.memory is None:
            return None
        try:
            tokens = self.memory.microbatch_tokens()
        except ValueError as error:
            tokens = self.memory.setup.longest_row
            logger.warning("It may not fit into memory: %s", error)
        if self.accelerator.is_main_process:
            self.say(
                f"micro-batches of at most {tokens:,} tokens (unless max_tokens_per_microbatch is "
                f"set): {self.memory.in_words()}"
            )
        return tokens

    def plan(self, rows: Sequence[R], filler: Callable[[R], R]) -> list[list[list[R]]]:
        """The micro-batches of every process, as rows; see `plan_microbatches`."""
        return plan_microbatches(rows, self.processes, self.limits, filler)

    def own_rows(self, rows: Sequence[R]) -> Sequence[R]:
        """This process's rows of a batch, where each is to be counted once."""
        return rows[self.rank :: self.processes]

    # What they give

    @cached_property
    def fused_lm_head(self) -> bool:
        """Whether log-probabilities come from TRL's fused head."""
        if self.args.fused_lm_head is None:
            return self.accelerator.device.type != "cpu"
        return self.args.fused_lm_head

    @cached_property
    def _parameters(self) -> Collection[str]:
        """What the policy's forward can be told."""
        model: Any = self.accelerator.unwrap_model(self.model())
        model = model.get_base_model() if is_peft_model(model) else model
        return inspect.signature(model.forward).parameters

    def log_probs(
        self,
        model: Any,
        rows: PaddedRows,
        temperature: float,
        return_token_entropy: bool = False,
        fused: bool = True,
        entropy_has_graph: bool = False,
    ) -> dict[str, Tensor]:
        """Log-probabilities (B, T) of the tokens that the response mask selects; 0 or anything
        elsewhere.

        By `get_response_log_probs`, on response positions only, or by TRL's fused head, which has
        its own temperature.

        Args:
            model: The policy, perhaps wrapped, or a reference model.
            rows: On the device of the model.
            temperature: Of the fused head too, where that is used.
            return_token_entropy: Whether to return `token_entropy` besides `log_probs`.
            fused: Whether the fused head may be used, where there is one.
            entropy_has_graph: Whether the entropies are differentiable, without the fused head.
        """
        kept_BT, inputs = self._in_one_sequence(model, rows)
        ids, labels, mask = rows.input_ids, rows.labels, rows.response_mask
        if kept_BT is not None:
            ids, labels, mask = (t[kept_BT].unsqueeze(0) for t in (ids, labels, mask))
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
                if "use_cache" in self._parameters:
                    inputs["use_cache"] = False
                if "logits_to_keep" in self._parameters:
                    # At least one: a row that is not in the loss needs a graph too.
                    any_S = mask.any(dim=0)
                    any_S[-1] |= ~any_S.any()
                    inputs["positions"] = any_S.nonzero().squeeze(1)
                inputs["entropy_has_graph"] = entropy_has_graph
                result = get_response_log_probs(
                    model, ids, labels, return_token_entropy, temperature=temperature, **inputs
                )
        if kept_BT is not None:
            result = {
                name: values.new_zeros(kept_BT.shape).masked_scatter(kept_BT, values)
                for name, values in result.items()
                if values is not None
            }
        return result

    def _in_one_sequence(
        self, model: Any, rows: PaddedRows
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Which positions (B, T) of the rows are concatenated, and what keeps rows apart then;
        None where rows stay padded."""
        if self.args.share_prefixes:
            tree = prefix_tree(rows)
            attention = self.accelerator.unwrap_model(model).config._attn_implementation
            mask = tree.attention_mask(attention)
            return tree.kept, {"position_ids": tree.positions, "attention_mask": mask}
        if not self.args.pack_rows:
            return None, {}
        columns_T = torch.arange(rows.input_ids.shape[1], device=rows.input_ids.device)
        lengths_B1 = torch.tensor(rows.lengths, device=columns_T.device).unsqueeze(1)
        real_BT = columns_T < lengths_B1
        # That positions begin anew tells the model where a row ends.
        return real_BT, {"position_ids": columns_T.expand_as(real_BT)[real_BT].unsqueeze(0)}

    def base_policy(self) -> AbstractContextManager[Any]:
        """In it, a policy with PEFT is the one it started from: the base model without adapters, or
        TRL's copy of the adapter that it came with."""
        model = self.accelerator.unwrap_model(self.model())
        return use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)
