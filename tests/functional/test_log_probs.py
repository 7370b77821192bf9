"""Entropies and label log-probabilities against arithmetic, torch and a real tiny causal LM."""

import math

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from trl_r1zero.functional import compute_entropy, get_response_log_probs, log_probs
from trl_r1zero.functional.log_probs import log_probs_from_logits

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


@pytest.fixture(scope="module")
def tiny_qwen2() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=53,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture
def token_ids() -> torch.Tensor:
    return torch.randint(53, (3, 8), generator=torch.Generator().manual_seed(1))


def test_compute_entropy():
    logits = torch.tensor(
        [
            [[5.0, 5.0, 5.0, 5.0], [LN3, 0.0, -math.inf, -math.inf]],
            [[0.0, 0.0, -math.inf, -math.inf], [0.0, -math.inf, -math.inf, -math.inf]],
        ]
    )
    # uniform over 4: ln 4.  p = 3/4, 1/4: 3/4 (ln 4 - ln 3) + 1/4 ln 4 = ln 4 - 3/4 ln 3.
    # uniform over 2: ln 2.  certain: 0.
    expected = torch.tensor([[LN4, LN4 - 0.75 * LN3], [LN2, 0.0]])
    torch.testing.assert_close(compute_entropy(logits), expected, rtol=1e-6, atol=1e-6)


def test_compute_entropy_of_logits_near_1e4_keeps_its_digits():
    # The softmax does not see a common offset. 1e4 + 1 is exact in float32, so is -1e4.
    small = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, -2e4]]])
    exact = compute_entropy(small.double()).float()
    for offset in (1e4, -1e4):
        torch.testing.assert_close(compute_entropy(small + offset), exact, rtol=1e-6, atol=1e-6)
    assert exact[0, 1].item() == pytest.approx(LN2, abs=1e-6)


def test_compute_entropy_gradient_and_chunks(monkeypatch):
    logits = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    whole = compute_entropy(logits)
    monkeypatch.setattr(log_probs, "chunk_elements", lambda device: 15)  # two positions at a time
    torch.testing.assert_close(compute_entropy(logits), whole, rtol=0, atol=0)
    assert torch.autograd.gradcheck(compute_entropy, logits)


def test_compute_entropy_gradient_is_finite_beside_excluded_tokens():
    logits = torch.tensor([[[0.3, -0.2, -math.inf]]], requires_grad=True)
    compute_entropy(logits).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 2].item() == 0.0
    assert logits.grad[0, 0, 0].item() < 0.0  # raising the likelier token lowers the entropy


def test_compute_entropy_temperature():
    # Logits (2 ln 3, 0) at temperature 2 are (ln 3, 0): p = 3/4, 1/4.
    entropy = compute_entropy(torch.tensor([[[2 * LN3, 0.0]]]), temperature=2.0)
    assert entropy.item() == pytest.approx(LN4 - 0.75 * LN3, abs=1e-6)


def test_log_probs_from_logits_by_hand():
    logits = torch.tensor([[[LN3, 0.0], [LN3, 0.0], [1e4, 0.0]]])
    labels = torch.tensor([[0, 1, 1]])
    # p = 3/4, 1/4; and a token 1e4 nats behind the other.
    expected = torch.tensor([[math.log(0.75), math.log(0.25), -1e4]])
    torch.testing.assert_close(log_probs_from_logits(logits, labels), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_from_logits_gradient_and_chunks(monkeypatch, temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(7, (2, 5), generator=generator)
    monkeypatch.setattr(log_probs, "chunk_elements", lambda device: 15)  # two positions at a time

    def ours(z):
        return log_probs_from_logits(z, labels, temperature=temperature)

    reference = (logits / temperature).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(ours(logits), reference, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(ours, logits)


def test_log_probs_from_bfloat16_logits_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(2, 3, 50, generator=generator)).bfloat16().requires_grad_()
    labels = torch.randint(50, (2, 3), generator=generator)
    ours = log_probs_from_logits(logits, labels)
    reference = logits.detach().double().log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_get_response_log_probs(tiny_qwen2, token_ids):
    input_ids, labels = token_ids[:, :-1], token_ids[:, 1:]
    result = get_response_log_probs(tiny_qwen2, input_ids, labels, return_token_entropy=True)
    log_p_BTV = tiny_qwen2(input_ids).logits.log_softmax(dim=-1)
    expected = torch.stack(
        [
            torch.stack([log_p_BTV[b, t, labels[b, t]] for t in range(labels.shape[1])])
            for b in range(labels.shape[0])
        ]
    )
    torch.testing.assert_close(result["log_probs"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        result["token_entropy"], -(log_p_BTV.exp() * log_p_BTV).sum(-1), rtol=1e-5, atol=1e-5
    )
    assert result["log_probs"].requires_grad
    assert not result["token_entropy"].requires_grad


def test_get_response_log_probs_without_entropy(tiny_qwen2, token_ids):
    assert get_response_log_probs(tiny_qwen2, token_ids, token_ids).keys() == {"log_probs"}


def test_get_response_log_probs_gradient_equals_plain_autograd(tiny_qwen2, token_ids):
    input_ids, labels = token_ids[:, :-1], token_ids[:, 1:]
    parameters = list(tiny_qwen2.parameters())
    ours = get_response_log_probs(tiny_qwen2, input_ids, labels)["log_probs"]
    plain = tiny_qwen2(input_ids).logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    for got, expected in zip(
        torch.autograd.grad(ours.mean(), parameters),
        torch.autograd.grad(plain.mean(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_get_response_log_probs_temperature_is_the_sampling_distribution(tiny_qwen2, token_ids):
    input_ids, labels = token_ids[:, :-1], token_ids[:, 1:]
    result = get_response_log_probs(tiny_qwen2, input_ids, labels, True, temperature=0.5)
    log_p_BTV = (2 * tiny_qwen2(input_ids).logits).log_softmax(-1)
    torch.testing.assert_close(
        result["log_probs"], log_p_BTV.gather(-1, labels[..., None])[..., 0], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        result["token_entropy"], -(log_p_BTV.exp() * log_p_BTV).sum(-1), rtol=1e-5, atol=1e-5
    )


def test_get_response_log_probs_right_padding_needs_no_attention_mask(tiny_qwen2, token_ids):
    ids = token_ids.clone()
    ids[1, 5:] = 0
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 5:] = 0
    without = get_response_log_probs(tiny_qwen2, ids[:, :-1], ids[:, 1:])["log_probs"]
    masked = get_response_log_probs(
        tiny_qwen2, ids[:, :-1], ids[:, 1:], attention_mask=attention_mask[:, :-1]
    )["log_probs"]
    torch.testing.assert_close(without[1, :4], masked[1, :4], rtol=1e-5, atol=1e-5)


def test_get_response_log_probs_left_padding_needs_mask_and_positions(tiny_qwen2, token_ids):
    alone = get_response_log_probs(tiny_qwen2, token_ids[:1, :-1], token_ids[:1, 1:])["log_probs"]
    pad = torch.zeros(1, 3, dtype=torch.long)
    input_ids = torch.cat([pad, token_ids[:1, :-1]], dim=1)
    labels = torch.cat([pad, token_ids[:1, 1:]], dim=1)
    padded = get_response_log_probs(
        tiny_qwen2,
        input_ids,
        labels,
        attention_mask=torch.tensor([[0] * 3 + [1] * 7]),
        position_ids=torch.tensor([[0] * 3 + list(range(7))]),
    )["log_probs"]
    torch.testing.assert_close(padded[:, 3:], alone, rtol=1e-4, atol=1e-5)


def test_log_prob_errors(tiny_qwen2, token_ids):
    with pytest.raises(ValueError, match=r"labels has shape \(3, 8\).*input_ids has shape"):
        get_response_log_probs(tiny_qwen2, token_ids[:, :-1], token_ids)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        get_response_log_probs(tiny_qwen2, token_ids, token_ids, temperature=0.0)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, T\) = \(1, 2\)"):
        log_probs_from_logits(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"logits must have shape \(B, T, V\)"):
        compute_entropy(torch.zeros(2, 3))
