"""Log-probabilities and entropies of next-token distributions.

Shape legend: B batch, T length, V vocabulary, S positions of one chunk.

The (B, T, V) tensor of logits is by far the largest of a training step (2 x 1024 x 151,936 floats
are 1.2 GB), so log-probabilities are worked out in chunks of at most `chunk_elements` elements, and
no second such tensor lives through the forward pass. Half-precision logits are raised to float32
one chunk at a time, because bfloat16 resolves a log-probability of -10 only to 1/16.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._checks import require_positive, require_same_shape

CHUNK_ELEMENTS = 1 << 25
# What stays in the cache of a CPU, which has no kernels to launch.
_CPU_CHUNK_ELEMENTS = 1 << 18


def chunk_elements(device: torch.device) -> int:
    """Logits that are worked on at a time."""
    return _CPU_CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _scaled(logits_SV: Tensor, temperature: float) -> Tensor:
    scaled_SV = _at_least_float32(logits_SV)
    return scaled_SV if temperature == 1.0 else scaled_SV / temperature


def _positions_per_chunk(logits: Tensor) -> int:
    return max(1, chunk_elements(logits.device) // logits.shape[-1])


def _require_logits(logits: Tensor) -> None:
    if logits.dim() != 3:
        raise ValueError(f"logits must have shape (B, T, V), got {tuple(logits.shape)}")


def _entropy_S(log_softmax_SV: Tensor) -> Tensor:
    """-sum p ln p; an excluded token, of probability 0, adds 0 and not 0 * -inf = NaN."""
    finite_SV = log_softmax_SV.clamp(min=torch.finfo(log_softmax_SV.dtype).min)
    return -(log_softmax_SV.exp() * finite_SV).sum(dim=-1)


def compute_entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Entropy of each next-token distribution, in nats.

    .. math:: H = -\sum_v p_v \ln p_v,
              \qquad p = \operatorname{softmax}(\text{logits} / \text{temperature})

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
    chunks = logits.flatten(0, 1).split(_positions_per_chunk(logits))
    entropies = [_entropy_S(_scaled(chunk, temperature).log_softmax(dim=-1)) for chunk in chunks]
    return torch.cat(entropies).view(logits.shape[:2])


def _entropy_slope(logits_SV: Tensor, temperature: float) -> Tensor:
    """d H / d z of an entropy H, and z the scaled logits."""
    log_softmax_SV = _scaled(logits_SV, temperature).log_softmax(dim=-1)
    entropy_S1 = _entropy_S(log_softmax_SV).unsqueeze(-1)
    finite_SV = log_softmax_SV.clamp(min=torch.finfo(log_softmax_SV.dtype).min)
    return -log_softmax_SV.exp() * (finite_SV + entropy_S1)


class _LabelLogProbs(torch.autograd.Function):
    """ln softmax(logits / temperature)[label], keeping nothing for backward but its inputs; and
    the entropies, if asked for: they cost little where the softmax is at hand.

    Plain autograd would keep a float32 copy of half-precision (or rescaled) logits until backward.
    Here backward recomputes the softmax chunk by chunk: with z = logits / temperature and
    p = softmax(z), d ln p_label / d logits_v = (1[v = label] - p_v) / temperature, and of the
    entropy H, d H / d logits_v = -p_v (ln p_v + H) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_BTV: Tensor,
        labels_BT: Tensor,
        temperature: float,
        with_entropy: bool,
        entropy_has_graph: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(logits_BTV, labels_BT)
        ctx.temperature, ctx.entropy_has_graph = temperature, entropy_has_graph
        dtype = torch.float64 if logits_BTV.dtype == torch.float64 else torch.float32
        log_probs_BT = logits_BTV.new_empty(labels_BT.shape, dtype=dtype)
        entropy_BT = torch.empty_like(log_probs_BT) if with_entropy else None
        positions, start = _positions_per_chunk(logits_BTV), 0
        for logits_SV, labels_S in zip(
            logits_BTV.flatten(0, 1).split(positions),
            labels_BT.flatten().split(positions),
            strict=True,
        ):
            chunk = slice(start, start + len(labels_S))
            log_softmax_SV = _scaled(logits_SV, temperature).log_softmax(dim=-1)
            label_log_probs_S1 = log_softmax_SV.gather(-1, labels_S.unsqueeze(-1))
            log_probs_BT.view(-1)[chunk] = label_log_probs_S1.squeeze(-1)
            if entropy_BT is not None:
                entropy_BT.view(-1)[chunk] = _entropy_S(log_softmax_SV)
            start = chunk.stop
        if entropy_BT is not None and not entropy_has_graph:
            ctx.mark_non_differentiable(entropy_BT)
        return log_probs_BT, entropy_BT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BT: Tensor, grad_entropy_BT: Tensor) -> tuple[Any, ...]:
        logits_BTV, labels_BT = ctx.saved_tensors
        grad_logits_BTV = torch.empty(
            logits_BTV.shape, dtype=logits_BTV.dtype, device=logits_BTV.device
        )
        positions = _positions_per_chunk(logits_BTV)
        for number, (logits_SV, labels_S, grad_S, out_SV) in enumerate(
            zip(
                logits_BTV.flatten(0, 1).split(positions),
                labels_BT.flatten().split(positions),
                grad_BT.flatten().split(positions),
                grad_logits_BTV.view(-1, logits_BTV.shape[-1]).split(positions),
                strict=True,
            )
        ):
            weight_S1 = (grad_S / ctx.temperature).unsqueeze(-1)
            softmax_SV = _scaled(logits_SV, ctx.temperature).softmax(dim=-1)
            grad_SV = softmax_SV.mul_(-weight_S1)
            grad_SV.scatter_add_(-1, labels_S.unsqueeze(-1), weight_S1)
            if ctx.entropy_has_graph:
                slope_SV = _entropy_slope(logits_SV, ctx.temperature) / ctx.temperature
                of_entropy_S = grad_entropy_BT.flatten().split(positions)[number]
                grad_SV.addcmul_(slope_SV, of_entropy_S.unsqueeze(-1))
            out_SV.copy_(grad_SV)
        return grad_logits_BTV, None, None, None, None


def log_probs_from_logits(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
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
    return _LabelLogProbs.apply(logits, labels, temperature, False, False)[0]


def get_response_log_probs(
    model: torch.nn.Module,
    input_ids: Tensor,
    labels: Tensor,
    return_token_entropy: bool = False,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    temperature: float = 1.0,
    positions: Tensor | None = None,
    use_cache: bool | None = None,
    entropy_has_graph: bool = False,
) -> dict[str, Tensor]:
    r"""Per-token log-probabilities :math:`\ln p_\theta(y_t \mid x_{<t})` under a causal LM.

    `labels[b, t]` is the token after `input_ids[b, t]`, as `tokenize_prompt_and_output` returns
    them. Prompt and padding are computed too, unless `positions` leaves them out: mask them with
    `response_mask`. The mode (train or eval) and the grad context are the caller's.

    Args:
        model: returns an object with `.logits` (B, T, V), as a transformers causal LM does.
        input_ids, labels: (B, T).
        return_token_entropy: also return the entropy of each next-token distribution.
        attention_mask, position_ids: (B, T), passed on if given. A causal LM on right-padded rows
            needs neither: no position before the padding sees it.
        temperature: logits are divided by it before the softmax, as in sampling.
        positions: (S,) columns, ascending, of which logits are computed, by `logits_to_keep`.
        use_cache: passed on if given. False saves transformers a copy of all keys and values.
        entropy_has_graph: entropies are differentiable too.

    Returns:
        `log_probs` (B, T) in nats with graph, and if asked `token_entropy` (B, T) in nats; both 0
        where `positions` leaves a column out.

    Raises:
        ValueError: shapes do not fit; temperature is not above 0.
    """
    require_same_shape(labels, "labels", input_ids, "input_ids")
    require_positive(temperature, "temperature", "get_response_log_probs")
    options: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
    options |= {"use_cache": use_cache, "logits_to_keep": positions}
    given = {name: value for name, value in options.items() if value is not None}
    logits_BSV = model(input_ids, **given).logits
    _require_logits(logits_BSV)
    labels_BS = labels if positions is None else labels[:, positions]
    if logits_BSV.shape[:2] != labels_BS.shape:
        raise ValueError(
            f"the model returned logits of shape {tuple(logits_BSV.shape)} for labels of shape "
            f"{tuple(labels_BS.shape)}, expected one distribution for each label"
        )
    names = ("log_probs", "token_entropy")
    values = _LabelLogProbs.apply(
        logits_BSV, labels_BS, temperature, return_token_entropy, entropy_has_graph
    )
    result = {n: v for n, v in zip(names, values, strict=True) if v is not None}
    if positions is not None:
        for name, values_BS in result.items():
            zeros_BT = values_BS.new_zeros(labels.shape)
            result[name] = zeros_BT.index_copy(1, positions, values_BS)
    return result
