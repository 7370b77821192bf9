"""The rows that a transformers model decodes at a time: they come, take a token a step, and leave.

What is computed, and what is not, decides the speed of sampling:

* a prompt that stands G times is read once, and what all prompts begin with once for all;
* prompts of about one length are read together, in forwards of bounded size;
* keys and values are written into tensors with room for more, not copied at each token;
* queries that share a head of keys are rows of one attention: transformers would copy the keys for
  each of them, which on a CPU took most of a step;
* rows that have ended make room for rows that wait.

Shapes: B rows, T columns of the cache, H heads of keys, D numbers of a head, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Tokens, with padding, of a forward that reads prompts: enough to keep a device busy.
_PROMPT_TOKENS = 2048
# Columns of the cache that are made at a time.
_ROOM = 128
# A shorter beginning of all prompts is not worth a forward of its own.
_SHORTEST_PREFIX = 16

_ATTENTION = "sdpa_grouped_decoding"


def _grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa`, without a copy of the keys for each query of one new token."""
    B, heads, length, D = query.shape
    shared = key.shape[1]
    per_head = attention_mask is not None and attention_mask.shape[1] > 1
    if length > 1 or shared == heads or per_head or rest.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
    output = F.scaled_dot_product_attention(
        query.reshape(B, shared, heads // shared, D),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=rest.get("dropout", 0.0),
        scale=rest.get("scaling"),
    )
    return output.reshape(B, 1, heads, -1), None


AttentionInterface.register(_ATTENTION, _grouped_attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@contextmanager
def _grouped(config: Any) -> Iterator[None]:
    """In it, a model with `sdpa` decodes by `_grouped_attention`."""
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


class _RoomyLayer(DynamicLayer):
    """Keys and values of a layer, (B, H, T, D), in tensors with room for more columns.

    Under autocast they are kept in its dtype, to which attention would cast them at every token.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._stores: list[Tensor] = []  # of keys and of values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `DynamicLayer`."""
        before, start = self.states, self.get_seq_length()
        end = start + key_states.shape[2]
        if start == 0 or end > self._stores[0].shape[2]:
            self._stores = [self._store(new, len(new), end) for new in (key_states, value_states)]
            if start:
                for store, old in zip(self._stores, before, strict=True):
                    store[:, :, :start] = old
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, start:end] = new
        self._show(end)
        return self.states

    def _store(self, like: Tensor, rows: int, columns: int) -> Tensor:
        dtype, device = like.dtype, like.device.type
        if dtype == torch.float32 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        shape = (rows, like.shape[1], columns + self.room, like.shape[3])
        return like.new_empty(shape, dtype=dtype)

    @property
    def states(self) -> tuple[Any, Any]:
        """Keys and values, without the room."""
        return self.keys, self.values

    def _show(self, end: int) -> None:
        self.keys, self.values = (store[:, :, :end] for store in self._stores)
        self.is_initialized = True

    def fill(self, parts: "Sequence[tuple[_RoomyLayer, Tensor, int]]", columns: int) -> None:
        """Take over rows of other layers, side by side, so that all end at the last column.

        Args:
            parts: Layers, which of their rows, and the first column that is taken of each.
            columns: How many there are to be.
        """
        rows = sum(len(index) for _, index, _ in parts)
        states = [layer.states for layer, _, _ in parts]
        self._stores = [self._store(like, rows, columns) for like in states[0]]
        for number, store in enumerate(self._stores):
            row = 0
            for pair, (_, index, first) in zip(states, parts, strict=True):
                taken = pair[number][:, :, first:][index]
                mine, start = store[row : row + len(index)], columns - taken.shape[2]
                mine[:, :, :start] = 0  # masked; but 0 times a NaN would be one
                mine[:, :, start:columns] = taken
                row += len(index)
        self._show(columns)


class DecodeBatch:
    """Rows of a batch with their cache, and the model's forward passes on them.

    Args:
        model: A causal language model.
        prompts: All that may come; what they begin with is read once.
        pad_token_id: Of padding, which no token sees.

    Attributes:
        joins: Whether rows can come while others run. Layers with a window or a state (whose
            caches have no columns to put side by side) take the next rows when all have ended.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_token_id: int
    ) -> None:
        self.model, self.pad_token_id = model, pad_token_id
        layers = DynamicCache(config=model.config).layers
        self.joins = all(type(layer) is DynamicLayer for layer in layers)
        self.mask_BT = self.position_B1 = torch.empty(0)
        self.cache: Any = None
        different = {tuple(ids) for ids in prompts}
        # What lies between the first and the last in order begins as both do.
        ends = enumerate(zip(min(different), max(different), strict=False))
        shortest = min(map(len, different)) - 1
        prefix = min(different)[: next((n for n, (a, b) in ends if a != b or n == shortest), 0)]
        if not self.joins or len(different) == 1 or len(prefix) < _SHORTEST_PREFIX:
            prefix = ()
        self._prefix_cache = self._new_cache(0)
        self._prefix_length = len(prefix)
        if prefix:
            ids_1T = torch.tensor([prefix], device=model.device)
            self._forward(ids_1T, torch.ones_like(ids_1T), self._prefix_cache)

    def step(self, token_B: Tensor) -> Tensor:
        """(B, V) float32 logits of what follows `token_B`, the newest token of each row."""
        self.mask_BT = F.pad(self.mask_BT, (0, 1), value=1)
        self.position_B1 = self.position_B1 + 1
        return self._forward(token_B.unsqueeze(1), self.mask_BT, self.cache, self.position_B1)

    def replace(self, kept: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Keep these positions of the batch, and let rows with these prompts in behind them.

        Args:
            kept: Ascending. None may be, where rows cannot join, if there are prompts.
            prompts: Equal ones side by side; best in the order of their lengths.

        Returns:
            (rows, V) float32 logits of the tokens that follow the prompts; (0, 0) without prompts.
        """
        parts, logits = [], [torch.empty(0, 0)] * (not prompts)
        if kept:
            parts.append((self.cache, self.mask_BT, self.position_B1, list(kept)))
        self.cache = None
        for chunk, places in self._chunks(prompts):
            suffixes = [ids[self._prefix_length :] for ids in chunk]
            width = max(map(len, suffixes))
            ids_BT = torch.tensor(
                [[self.pad_token_id] * (width - len(ids)) + list(ids) for ids in suffixes]
            )
            mask_BT = torch.tensor(
                [
                    [1] * self._prefix_length + [0] * (width - len(ids)) + [1] * len(ids)
                    for ids in suffixes
                ]
            ).to(self.model.device)
            cache, first = self._new_cache(0), [0] * len(chunk)
            if self._prefix_length:
                cache = self._joined([(self._prefix_cache, 0, first)], self._prefix_length, width)
            position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -width:]
            logits_RV = self._forward(ids_BT.to(self.model.device), mask_BT, cache, position_BT)
            index = torch.tensor(places, device=logits_RV.device)
            logits.append(logits_RV[index])
            parts.append((cache, mask_BT, position_BT[:, -1:], places))
        self._take(parts)
        return torch.cat(logits)

    def _chunks(
        self, prompts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[Sequence[int]], list[int]]]:
        """Prompts of one forward, each once, and for each row its place among them."""
        chunk: list[Sequence[int]] = []
        places: list[int] = []
        for ids in prompts:
            if not (self.joins and chunk and ids == chunk[-1]):
                tokens = (len(chunk) + 1) * (len(ids) - self._prefix_length)
                if self.joins and chunk and tokens > _PROMPT_TOKENS:
                    yield chunk, places
                    chunk, places = [], []
                chunk.append(ids)
            places.append(len(chunk) - 1)
        if chunk:
            yield chunk, places

    def _take(self, parts: list[tuple[Any, Tensor, Tensor, list[int]]]) -> None:
        """Make a batch of rows of several: cache, mask and newest positions of each, and which."""
        device = self.model.device
        masks = [mask_BT[torch.tensor(rows, device=device)] for _, mask_BT, _, rows in parts]
        positions = [p_B1[torch.tensor(rows, device=device)] for _, _, p_B1, rows in parts]
        self.position_B1 = torch.cat(positions)
        if not self.joins:
            ((self.cache, _, _, rows),) = parts
            self.cache.batch_select_indices(torch.tensor(rows, device=device))
            self.mask_BT = masks[0]
            return
        # Columns that are padding in all rows go.
        firsts = [int(mask_BT.any(0).int().argmax()) for mask_BT in masks]
        columns = max(mask.shape[1] - first for mask, first in zip(masks, firsts, strict=True))
        self.mask_BT = torch.cat([F.pad(mask, (columns - mask.shape[1], 0)) for mask in masks])
        self.cache = self._joined(
            [
                (cache, first, rows)
                for (cache, _, _, rows), first in zip(parts, firsts, strict=True)
            ],
            columns,
            _ROOM,
        )

    def _joined(
        self, parts: Sequence[tuple[Any, int, list[int]]], columns: int, room: int
    ) -> DynamicCache:
        """One cache of rows of several, which lose theirs layer by layer, but for the prefix's."""
        cache: Any = self._new_cache(room)
        indices = [torch.tensor(rows, device=self.model.device) for _, _, rows in parts]
        for number, layer in enumerate(cache.layers):
            of_parts = [
                (part.layers[number], index, first)
                for (part, first, _), index in zip(parts, indices, strict=True)
            ]
            layer.fill(of_parts, columns)
            for part, _, _ in parts:
                if part is not self._prefix_cache:
                    part.layers[number] = None
        return cache

    def _new_cache(self, room: int) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        if self.joins:
            cache.layers = [_RoomyLayer(room) for _ in cache.layers]
        return cache

    def _forward(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor,
        cache: DynamicCache,
        position_BT: Tensor | None = None,
    ) -> Tensor:
        """(B, V) float32 logits of what follows the last of these tokens."""
        if position_BT is None:
            position_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).unsqueeze(0)
        with _grouped(self.model.config):
            output = self.model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=position_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1].float()
