"""The DPO loss of a pair: against the formula over all tokens, TRL, and arithmetic."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from tiny_models import make_tiny_model
from transformers import Qwen2ForCausalLM
from trl import DPOConfig, DPOTrainer

from trl_r1zero import compute_per_instance_dpo_loss
from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer
from trl_r1zero.data.prompts import format_alpaca
from trl_r1zero.functional import dpo_loss
from trl_r1zero.trainers.epochs import make_pair_microbatch
from trl_r1zero.trainers.preference import encode_pair, pair_log_probs

LN2 = math.log(2)
PAIRS = [
    ("How do I boil an egg?", "Seven minutes in boiling water.", "No idea."),
    ("What is 17 + 25?", "17 + 25 = 42", "It is 43, I think, or perhaps 41."),
    ("Übersetze {hello} ins Deutsche.", "„Hallo“ 👋", "Bonjour"),
    ("Tell me\n\nHuman: a joke", " A space before.", ""),
    ("Name a colour.", "Blue", "Blue, or green"),
]


def make_batch(prompts, chosen, rejected, tokenizer):
    texts = zip(prompts, chosen, rejected, strict=True)
    rows = [encode_pair(*pair, tokenizer) for pair in texts]
    return make_pair_microbatch(rows, tokenizer.eos_token_id)


def make_sharp_model(tokenizer, seed: int) -> Qwen2ForCausalLM:
    """A tiny model whose distributions are far from uniform, so that a wrong token shows."""
    model = make_tiny_model(tokenizer, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model.eval()


@pytest.fixture(scope="module")
def spanning_tokenizer():
    """Has tokens of ":" with a line break and of two line breaks: they span the border."""
    texts = [format_alpaca("Say it.", f"{start}Of course") for start in ("", "\n", "\n\n")]
    return build_embedded_tokenizer(texts * 3)


@pytest.fixture
def lm(tokenizer) -> Qwen2ForCausalLM:
    return make_sharp_model(tokenizer, seed=0)


@pytest.fixture
def lm_ref(tokenizer) -> Qwen2ForCausalLM:
    return make_sharp_model(tokenizer, seed=1)


def loss_over_all_tokens(lm, lm_ref, tokenizer, beta, prompt, chosen, rejected) -> torch.Tensor:
    """Written out: the whole text with the end-of-text token, tokenised at once, every token in the
    sum, one sequence at a time."""

    def log_prob(model, response):
        text = (
            "Below is an instruction that describes a task. Write a response that appropriately "
            f"completes the request.\n\n### Instruction:\n{prompt}\n\n### Response:\n{response}"
        )
        ids = tokenizer(text + tokenizer.eos_token, return_tensors="pt")["input_ids"]
        log_probs = model(ids).logits[0, :-1].log_softmax(dim=-1)
        return log_probs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum()

    policy = log_prob(lm, chosen) - log_prob(lm, rejected)
    reference = log_prob(lm_ref, chosen) - log_prob(lm_ref, rejected)
    return -torch.log(torch.sigmoid(beta * (policy - reference)))


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# The value


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_equals_the_formula_over_all_tokens(lm, lm_ref, tokenizer, pair):
    loss = compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, *pair)
    assert loss.shape == ()
    assert abs(loss.item() - LN2) > 1e-3
    expected = loss_over_all_tokens(lm, lm_ref, tokenizer, 0.1, *pair)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient(loss, lm), gradient(expected, lm), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("\nOf", "Of"), ("Of", "\n\nOf"), ("\n", ""), ("\nOf", "\n\nOf")]
)
def test_equals_it_where_a_token_spans_the_border(spanning_tokenizer, chosen, rejected):
    prompt_ids = spanning_tokenizer(format_alpaca("Say it."))["input_ids"]
    whole_ids = spanning_tokenizer(format_alpaca("Say it.", "\nOf"))["input_ids"]
    assert whole_ids[: len(prompt_ids)] != prompt_ids  # or this tests nothing
    models = [make_sharp_model(spanning_tokenizer, seed).double() for seed in (0, 1)]
    pair = ("Say it.", chosen, rejected)
    loss = compute_per_instance_dpo_loss(*models, spanning_tokenizer, 0.1, *pair)
    assert abs(loss.item() - LN2) > 1e-3
    expected = loss_over_all_tokens(*models, spanning_tokenizer, 0.1, *pair)
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=0)


def test_all_arguments_by_name(lm, lm_ref, tokenizer):
    prompt, chosen, rejected = PAIRS[0]
    named = compute_per_instance_dpo_loss(
        lm=lm,
        lm_ref=lm_ref,
        tokenizer=tokenizer,
        beta=0.5,
        prompt=prompt,
        response_chosen=chosen,
        response_rejected=rejected,
    )
    assert named == compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.5, *PAIRS[0])


def test_the_loss_by_eye(tokenizer, lm_ref):
    """A policy without weights is uniform, and so is its reference: only lengths differ, and they
    cancel. Against a reference that knows the end of text, they do not."""
    lm = make_tiny_model(tokenizer)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.zero_()
    batch = make_batch(["1 +"], [" 1 2"], [" 3"], tokenizer)
    chosen, rejected = pair_log_probs(lm, batch)
    nats = math.log(len(tokenizer))
    assert chosen.item() == pytest.approx(-3 * nats)  # two numbers and the end of the text
    assert rejected.item() == pytest.approx(-2 * nats)
    assert compute_per_instance_dpo_loss(
        lm, copy.deepcopy(lm), tokenizer, 0.1, "1 +", " 1 2", " 3"
    ).item() == pytest.approx(LN2)
    ref_chosen, ref_rejected = pair_log_probs(lm_ref, batch)
    margin = 0.1 * (-3 * nats - ref_chosen.item() + 2 * nats + ref_rejected.item())
    loss = compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, "1 +", " 1 2", " 3")
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)), abs=1e-5)


def test_equals_trl(lm, lm_ref, tokenizer, tmp_path):
    """The loss of TRL's trainer on the same rows in the template, made into text here."""
    rows = [
        {
            "prompt": format_alpaca(prompt),
            "chosen": chosen + tokenizer.eos_token,
            "rejected": rejected + tokenizer.eos_token,
        }
        for prompt, chosen, rejected in PAIRS
    ]
    args = DPOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        per_device_train_batch_size=len(PAIRS),
        gradient_checkpointing=False,
        max_length=None,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = DPOTrainer(
        model=copy.deepcopy(lm),
        ref_model=copy.deepcopy(lm_ref),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    ours = [compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.3, *pair) for pair in PAIRS]
    assert torch.stack(ours).mean().item() == pytest.approx(theirs.item(), abs=1e-5)


def test_identical_models_give_ln_2(lm, tokenizer):
    for ref in (lm, copy.deepcopy(lm)):
        for pair in PAIRS:
            loss = compute_per_instance_dpo_loss(lm, ref, tokenizer, 0.7, *pair)
            assert loss.item() == pytest.approx(LN2, abs=1e-6)


def test_swapped_responses(lm, lm_ref, tokenizer):
    """sigmoid(m) + sigmoid(-m) = 1."""
    prompt, chosen, rejected = PAIRS[1]
    one, other = (
        compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, prompt, *responses).item()
        for responses in ((chosen, rejected), (rejected, chosen))
    )
    assert math.exp(-one) + math.exp(-other) == pytest.approx(1.0, abs=1e-6)


def test_equal_responses_teach_nothing(lm, lm_ref, tokenizer):
    loss = compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, "Q", "same", "same")
    assert loss.item() == pytest.approx(LN2, abs=1e-6)
    assert gradient(loss, lm).abs().max() < 1e-5


def test_batch_mean_equals_per_instance_mean(lm, lm_ref, tokenizer):
    batch = make_batch(*zip(*PAIRS, strict=True), tokenizer)
    with torch.no_grad():
        reference = pair_log_probs(lm_ref, batch)
    losses, metadata = dpo_loss(*pair_log_probs(lm, batch), *reference, 0.1)
    one_by_one = torch.stack(
        [compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, *pair) for pair in PAIRS]
    )
    torch.testing.assert_close(losses, one_by_one, atol=1e-5, rtol=0)
    assert losses.mean().item() == pytest.approx(one_by_one.mean().item(), abs=1e-5)
    torch.testing.assert_close(
        gradient(losses.mean(), lm), gradient(one_by_one.mean(), lm), atol=1e-4, rtol=1e-4
    )
    assert metadata["accuracies"].tolist() == (one_by_one < LN2).tolist()


# Gradients


def test_only_the_policy_gets_gradients(lm, lm_ref, tokenizer):
    graphs = []
    lm_ref.register_forward_hook(
        lambda module, args, output: graphs.append(output.logits.requires_grad)
    )
    compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, *PAIRS[0]).backward()
    assert all(parameter.grad is not None for parameter in lm.parameters())
    assert any(parameter.grad.abs().max() > 0 for parameter in lm.parameters())
    assert all(parameter.grad is None for parameter in lm_ref.parameters())
    assert graphs == [False]  # no memory for a graph that nobody needs


def test_a_reference_that_is_the_policy_itself_is_a_constant(lm, tokenizer):
    """Differentiated on both sides, the margin would be 0 whatever the weights."""
    compute_per_instance_dpo_loss(lm, lm, tokenizer, 0.1, *PAIRS[0]).backward()
    assert max(parameter.grad.abs().max() for parameter in lm.parameters()) > 0.01


def test_modes_are_left_alone(lm, lm_ref, tokenizer):
    lm.train()
    compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, *PAIRS[0])
    assert lm.training
    assert not lm_ref.training


def test_a_few_steps_lower_the_loss_and_widen_the_margin(tokenizer):
    lm = make_tiny_model(tokenizer)
    lm_ref = copy.deepcopy(lm)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3)
    means = []
    for _ in range(8):
        losses = [compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.5, *p) for p in PAIRS]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        means.append(loss.item())
    assert means[0] == pytest.approx(LN2, abs=1e-6)
    assert means[-1] < 0.8 * LN2
    batch = make_batch(*zip(*PAIRS, strict=True), tokenizer)
    with torch.no_grad():
        _, metadata = dpo_loss(*pair_log_probs(lm, batch), *pair_log_probs(lm_ref, batch), 0.5)
    assert metadata["accuracies"].all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_models_on_different_devices(lm, lm_ref, tokenizer, devices):
    on_cpu = compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, *PAIRS[0])
    lm.to(devices[0])
    lm_ref.to(devices[1])
    loss = compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, *PAIRS[0])
    assert loss.device.type == devices[0]
    assert loss.item() == pytest.approx(on_cpu.item(), abs=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in lm.parameters())


class ElsewhereOutput:
    def __init__(self, logits):
        self.logits = logits


class Elsewhere(torch.nn.Module):
    """Stands on the meta device and notes where its input was."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(vocabulary, device="meta"))
        self.seen = []

    def forward(self, input_ids):
        self.seen.append(input_ids.device.type)
        return ElsewhereOutput(self.weight.expand(*input_ids.shape, -1))


def test_inputs_go_to_each_model_and_the_loss_is_where_the_policy_is(lm_ref, tokenizer):
    """Without a second device: a tensor on the meta device mixes with no tensor on the CPU."""
    lm = Elsewhere(len(tokenizer))
    loss = compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, *PAIRS[0])
    assert lm.seen == ["meta"]
    assert loss.device.type == "meta"
    assert loss.shape == ()


# The rows


def test_rows_by_eye(tokenizer):
    batch = make_batch(["1 +", "Hm"], [" 1 2", "a"], [" 3", " 4 5 6"], tokenizer)
    marked = [
        tokenizer.convert_ids_to_tokens(labels[mask].tolist())
        for labels, mask in zip(batch.labels, batch.response_mask, strict=True)
    ]
    end = tokenizer.eos_token
    assert marked == [[" 1", " 2", end], ["a", end], [" 3", end], [" 4", " 5", " 6", end]]
    first_row = tokenizer.decode([*batch.input_ids[0, :1], *batch.labels[0]])
    assert first_row.startswith(format_alpaca("1 +", " 1 2") + end)


def test_the_shared_beginning_is_that_of_prompt_and_both_texts(spanning_tokenizer):
    """ "Of" is in both responses, but not in the prompt, so it counts; ":" counts where a token
    spans the border in one of the two."""
    end = spanning_tokenizer.eos_token

    def marked(chosen, rejected):
        batch = make_batch(["Say it."], [chosen], [rejected], spanning_tokenizer)
        return [
            spanning_tokenizer.decode(labels[mask])
            for labels, mask in zip(batch.labels, batch.response_mask, strict=True)
        ]

    assert marked("Of", "Of course") == [f"Of{end}", f"Of course{end}"]
    assert marked("\nOf", "Of") == [f":\n\nOf{end}", f":\nOf{end}"]


def test_a_tokenizer_without_pad_token(lm, lm_ref, tokenizer):
    expected = compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, 0.1, *PAIRS[1])
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    assert bare.pad_token_id is None
    assert compute_per_instance_dpo_loss(lm, lm_ref, bare, 0.1, *PAIRS[1]) == expected


class WithSpecialTokens:
    """The embedded tokenizer with token 7 before a text, and token 8 behind it if asked."""

    def __init__(self, tokenizer, end=()):
        self.tokenizer, self.end, self.eos_token_id = tokenizer, end, tokenizer.eos_token_id

    def __call__(self, text, add_special_tokens=True):
        ids = self.tokenizer(text)["input_ids"]
        return {"input_ids": [7, *ids, *self.end] if add_special_tokens else ids}


def test_a_begin_token_is_the_tokenizers_business(tokenizer):
    batch = make_batch(["Hm"], ["a"], ["b"], WithSpecialTokens(tokenizer))
    plain = make_batch(["Hm"], ["a"], ["b"], tokenizer)
    assert batch.input_ids[:, 0].tolist() == [7, 7]
    assert torch.equal(batch.input_ids[:, 1:], plain.input_ids)
    assert torch.equal(batch.response_mask[:, 1:], plain.response_mask)


def test_a_tokenizer_that_appends_tokens_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"appends special tokens \(8\)"):
        make_batch(["Hm"], ["a"], ["b"], WithSpecialTokens(tokenizer, end=(8,)))


def test_a_tokenizer_without_end_of_text_is_an_error(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(ValueError, match=r"eos_token_id is None.*set tokenizer\.eos_token"):
        make_batch(["Hm"], ["a"], ["b"], bare)


def test_wrong_arguments_are_errors(lm, lm_ref, tokenizer):
    with pytest.raises(ValueError, match="beta must be a finite number above 0, got -1"):
        compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, -1, *PAIRS[0])
