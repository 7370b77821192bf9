"""Log-probabilities and entropies of next-token distributions.

Shape legend: B batch, T length, V vocabulary, S positions of one chunk.

The (B, T, V) tensor of logits is by far the largest of a training step (2 x 1024 x 151,936 floats
are 1.2 GB), so log-probabilities are worked out in chunks of at most `CHUNK_ELEMENTS` elements, and
no second such tensor lives through the forward pass. Half-precision logits are raised to float32
one chunk at a time, because bfloat16 resolves a log-probability of -10 only to 1/16.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from trl_r1zero.functional._checks import require_positive, require_same_shape

CHUNK_ELEMENTS = 1 << 25


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _scaled(logits_SV: torch.Tensor, temperature: float) -> torch.Tensor:
    scaled_SV = _at_least_float32(logits_SV)
    return scaled_SV if temperature == 1.0 else scaled_SV / temperature


def _positions_per_chunk(vocabulary_size: int) -> int:
    return max(1, CHUNK_ELEMENTS // vocabulary_size)


def _require_logits(logits: torch.Tensor) -> None:
    if logits.dim() != 3:
        raise ValueError(f"logits must have shape (B, T, V), got {tuple(logits.shape)}")


def _entropy_S(logits_SV: torch.Tensor, temperature: float) -> torch.Tensor:
    scaled_SV = _scaled(logits_SV, temperature)
    # Without the shift, logits near 1e4 cost three digits: logsumexp(z) and E[z] are then both near
    # 1e4, where float32 has a spacing of 1e-3, and the entropy is their difference.
    shifted_SV = scaled_SV - scaled_SV.amax(dim=-1, keepdim=True).detach()
    probs_SV = shifted_SV.softmax(dim=-1)
    # An excluded token (logit -inf) has probability 0 and adds 0 ln 0 = 0, not 0 * -inf = NaN.
    finite_SV = shifted_SV.masked_fill(shifted_SV == -torch.inf, 0.0)
    return shifted_SV.logsumexp(dim=-1) - (probs_SV * finite_SV).sum(dim=-1)


def compute_entropy(logits: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    r"""Entropy of each next-token distribution, in nats.

    .. math:: H = -\sum_v p_v \ln p_v = \operatorname{logsumexp}(z) - \sum_v p_v z_v,
              \qquad p = \operatorname{softmax}(z),\ z = \text{logits} / \text{temperature}

    evaluated on z - max(z), which leaves H unchanged and keeps its digits when logits are large.

    Args:
        logits: (B, T, V), unnormalised. -inf excludes a token.
        temperature: what the logits are divided by; 1.0 is the model's own distribution.

    Returns:
        (B, T), from 0 (certain) to ln V (uniform); float32, or float64 for float64 logits.
        Differentiable. Without a graph (under `torch.no_grad`) it needs only one chunk of memory.

    Raises:
        ValueError: logits are not three-dimensional; temperature is not above 0.
    """
    _require_logits(logits)
    require_positive(temperature, "temperature", "compute_entropy")
    chunks = logits.flatten(0, 1).split(_positions_per_chunk(logits.shape[-1]))
    return torch.cat([_entropy_S(chunk_SV, temperature) for chunk_SV in chunks]).view(
        logits.shape[:2]
    )


class _LabelLogProbs(torch.autograd.Function):
    """ln softmax(logits / temperature)[label], keeping nothing for backward but its inputs; and
    the entropies, without graph, if asked for: they cost little where the softmax is at hand.

    Plain autograd would keep a float32 copy of half-precision (or rescaled) logits until backward.
    Here backward recomputes the softmax chunk by chunk: with z = logits / temperature,
    d log p_label / d logits_v = (1[v = label] - softmax(z)_v) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_BTV: torch.Tensor,
        labels_BT: torch.Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.save_for_backward(logits_BTV, labels_BT)
        ctx.temperature = temperature
        dtype = torch.float64 if logits_BTV.dtype == torch.float64 else torch.float32
        log_probs_BT = logits_BTV.new_empty(labels_BT.shape, dtype=dtype)
        entropy_BT = torch.empty_like(log_probs_BT) if with_entropy else None
        positions = _positions_per_chunk(logits_BTV.shape[-1])
        for number, (logits_SV, labels_S, out_S) in enumerate(
            zip(
                logits_BTV.flatten(0, 1).split(positions),
                labels_BT.flatten().split(positions),
                log_probs_BT.view(-1).split(positions),
                strict=True,
            )
        ):
            log_softmax_SV = _scaled(logits_SV, temperature).log_softmax(dim=-1)
            out_S.copy_(log_softmax_SV.gather(-1, labels_S.unsqueeze(-1)).squeeze(-1))
            if entropy_BT is not None:
                start = number * positions
                entropy_BT.view(-1)[start : start + len(out_S)] = _entropy_of(log_softmax_SV)
        if entropy_BT is not None:
            ctx.mark_non_differentiable(entropy_BT)
        return log_probs_BT, entropy_BT

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_BT: torch.Tensor, _: torch.Tensor | None
    ) -> tuple[torch.Tensor, None, None, None]:
        logits_BTV, labels_BT = ctx.saved_tensors
        grad_logits_BTV = torch.empty(
            logits_BTV.shape, dtype=logits_BTV.dtype, device=logits_BTV.device
        )
        positions = _positions_per_chunk(logits_BTV.shape[-1])
        for logits_SV, labels_S, grad_S, out_SV in zip(
            logits_BTV.flatten(0, 1).split(positions),
            labels_BT.flatten().split(positions),
            grad_BT.flatten().split(positions),
            grad_logits_BTV.view(-1, logits_BTV.shape[-1]).split(positions),
            strict=True,
        ):
            weight_S1 = (grad_S / ctx.temperature).unsqueeze(-1)
            softmax_SV = _scaled(logits_SV, ctx.temperature).softmax(dim=-1)
            grad_SV = softmax_SV.mul_(-weight_S1)
            grad_SV.scatter_add_(-1, labels_S.unsqueeze(-1), weight_S1)
            out_SV.copy_(grad_SV)
        return grad_logits_BTV, None, None, None


def _entropy_of(log_softmax_SV: torch.Tensor) -> torch.Tensor:
    """-sum p ln p; an excluded token, of probability 0, adds 0 and not 0 * -inf = NaN."""
    finite_SV = log_softmax_SV.clamp(min=torch.finfo(log_softmax_SV.dtype).min)
    return -(log_softmax_SV.exp() * finite_SV).sum(dim=-1)


def log_probs_from_logits(
    logits: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    r"""Log-probability of each label: :math:`z_{label} - \operatorname{logsumexp}(z)`.

    z is logits / temperature. No shift is applied: `logits[b, t]` is the distribution of
    `labels[b, t]`. Half-precision logits are computed in float32 and get gradients in their own
    dtype. First derivatives only.

    Args:
        logits: (B, T, V), unnormalised.
        labels: (B, T) token ids, each from 0 to V - 1 (padding too: use any id, and mask it later).
        temperature: what the logits are divided by. Rollouts sampled at a temperature come from
            this distribution, and a policy gradient needs the log-probability under it.

    Returns:
        (B, T), in nats, at most 0; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes do not fit; temperature is not above 0.
    """
    _require_logits(logits)
    require_positive(temperature, "temperature", "log_probs_from_logits")
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but logits have shape "
            f"{tuple(logits.shape)}; labels must have shape (B, T) = {tuple(logits.shape[:2])}"
        )
    return _LabelLogProbs.apply(logits, labels, temperature, False)[0]


def get_response_log_probs(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    return_token_entropy: bool = False,
    *,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    temperature: float = 1.0,
    positions: torch.Tensor | None = None,
    use_cache: bool | None = None,
) -> dict[str, torch.Tensor]:
    r"""Per-token log-probabilities :math:`\ln p_\theta(y_t \mid x_{<t})` under a causal LM.

    `input_ids` and `labels` are already shifted against each other, as `tokenize_prompt_and_output`
    returns them: `labels[b, t]` is the token after `input_ids[b, t]`. Prompt and padding positions
    are computed too, unless `positions` leaves them out; mask them with `response_mask`. The mode
    (train or eval) and the grad context are the caller's.

    Args:
        model: returns an object with `.logits` (B, T, V), as a transformers causal LM does.
        input_ids: (B, T).
        labels: (B, T).
        return_token_entropy: also return the entropy of each next-token distribution.
        attention_mask, position_ids: (B, T), passed to the model only if given. A causal LM on
            right-padded rows needs neither: no position before the padding sees it.
        temperature: logits are divided by it before the softmax, as in sampling; 1.0 is the
            model's own distribution.
        positions: (S,) columns, ascending; logits of these only are computed, which saves the
            model's last and widest layer on the others. The model must take `logits_to_keep`.
        use_cache: passed to the model only if given. False saves models of transformers a copy of
            all keys and values.

    Returns:
        `log_probs` (B, T) in nats with gradient, and if asked `token_entropy` (B, T) in nats,
        which carries no graph: it is for logging, and a graph would keep (B, T, V) tensors alive.
        Both are 0 where `positions` leaves a column out.

    Raises:
        ValueError: shapes do not fit; temperature is not above 0.
    """
    require_same_shape(labels, "labels", input_ids, "input_ids")
    require_positive(temperature, "temperature", "get_response_log_probs")
    optional = {
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "use_cache": use_cache,
        "logits_to_keep": positions,
    }
    given = {name: value for name, value in optional.items() if value is not None}
    logits_BSV = model(input_ids, **given).logits
    _require_logits(logits_BSV)
    labels_BS = labels if positions is None else labels[:, positions]
    if logits_BSV.shape[:2] != labels_BS.shape:
        raise ValueError(
            f"the model returned logits of shape {tuple(logits_BSV.shape)} for labels of shape "
            f"{tuple(labels_BS.shape)}, expected one distribution for each label"
        )
    log_probs_BS, entropy_BS = _LabelLogProbs.apply(
        logits_BSV, labels_BS, temperature, return_token_entropy
    )
    result = {"log_probs": log_probs_BS}
    if entropy_BS is not None:
        result["token_entropy"] = entropy_BS
    if positions is not None:
        result = {
            name: values_BS.new_zeros(labels.shape).index_copy(1, positions, values_BS)
            for name, values_BS in result.items()
        }
    return result
