"""Rows that begin alike, as one sequence in which what they share stands once.

The completions of a group have one prompt, and all prompts of a run may begin with the same
instructions. A causal model computes the same for equal beginnings, so one copy is enough, and its
gradient is the sum of theirs. The rows then form a tree: a position sees itself and those before it
in its own row, and its number is the one that it has in its row.

Shapes: B rows, T the longest, S positions that are computed.
"""

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from .microbatches import PaddedRows

# A mask decides what these let a position see.
_MASKED_ATTENTION = ("sdpa", "eager")


@dataclass
class PrefixTree:
    """How rows share their beginnings."""

    # (B, T) bool, the S positions that are computed; a row leaves out what another has, but never a
    # position whose log-probability it wants.
    kept: Tensor
    positions: Tensor  # (1, S), of each in its row
    visible: Tensor  # (1, 1, S, S) bool, whether a position (third) sees another (fourth)

    def attention_mask(self, attention: str) -> Tensor:
        """As an implementation of attention takes it."""
        if attention == "sdpa":
            return self.visible
        # Eager attention adds it to the scores.
        scores = torch.zeros(self.visible.shape, device=self.visible.device)
        return scores.masked_fill(~self.visible, torch.finfo(scores.dtype).min)


def prefix_tree(rows: PaddedRows) -> PrefixTree:
    """How these rows share their beginnings."""
    ids = [row[:n] for row, n in zip(rows.input_ids.tolist(), rows.lengths, strict=True)]
    wanted = rows.response_mask.tolist()
    # In this order no row has more in common with any row before it than with the last of them.
    order = sorted(range(len(ids)), key=ids.__getitem__)
    shared, source = [0] * len(ids), dict(zip(order[1:], order, strict=False))
    for row, before in source.items():
        # Not its last position: a row that is not in the loss is to have a graph, too.
        end = min(rows.lengths[row] - 1, [*wanted[row], True].index(True))
        alike = (a == b for a, b in zip(ids[row][:end], ids[before], strict=False))
        shared[row] = sum(takewhile(bool, alike))
    columns_T = torch.arange(rows.input_ids.shape[1])
    lengths_B1, shared_B1 = (torch.tensor(n).unsqueeze(1) for n in (rows.lengths, shared))
    kept_BT = (columns_T >= shared_B1) & (columns_T < lengths_B1)
    number_BT = kept_BT.flatten().cumsum(0).view(kept_BT.shape) - 1  # among the S
    visible_SS = torch.zeros(2 * [int(kept_BT.sum())], dtype=torch.bool)
    for row in order:
        start, length = shared[row], rows.lengths[row]
        if start:
            number_BT[row, :start] = number_BT[source[row], :start]
        seen_L, own_L = number_BT[row, :length], number_BT[row, start:length]
        causal_LL = torch.ones(len(own_L), length, dtype=torch.bool).tril(start)
        visible_SS[own_L.unsqueeze(1), seen_L] = causal_LL
    device = rows.input_ids.device
    return PrefixTree(
        kept=kept_BT.to(device),
        positions=columns_T.expand_as(kept_BT)[kept_BT].unsqueeze(0).to(device),
        visible=visible_SS[None, None].to(device),
    )


def check_shares_prefixes(config: Any) -> None:
    """A ValueError if a model's attention does not take the mask of a `PrefixTree`."""
    config = config.get_text_config(decoder=True)
    attention = config._attn_implementation
    if attention not in _MASKED_ATTENTION:
        raise ValueError(
            f"share_prefixes is true, but attn_implementation {attention!r} takes no mask that "
            "says which position sees which; set it to one of "
            f"{', '.join(_MASKED_ATTENTION)}, or remove share_prefixes"
        )
    others = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if others:
        raise ValueError(
            f"share_prefixes is true, but the model has layers ({', '.join(others)}) that do not "
            "see all positions before one; remove share_prefixes"
        )
