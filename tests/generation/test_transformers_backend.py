"""Sampling with the transformers backend: stop strings, minimum lengths, random streams."""

import pytest
import torch
from tiny_models import make_tiny_model

from trl_r1zero.generation import (
    SamplingConfig,
    TransformersEngine,
    generate,
    in_order,
    row_seeds,
)


class Scripted(torch.nn.Module):
    """A causal language model whose next token is the script's, whatever stands before it.

    It is a real (tiny) model with its head replaced, so cache, masks and positions are real too.
    """

    def __init__(self, tokenizer, scripts: list[list[int]], prompt_length: int) -> None:
        super().__init__()
        self.inner = make_tiny_model(tokenizer)
        self.config, self.device = self.inner.config, torch.device("cpu")
        self.scripts, self.prompt_length = scripts, prompt_length

    def forward(self, input_ids, position_ids, **kwargs):
        output = self.inner(input_ids=input_ids, position_ids=position_ids, **kwargs)
        logits = torch.full_like(output.logits, -30.0)
        for row in range(len(input_ids)):
            # The first prompt token names the script, the position its place in it.
            place = int(position_ids[row, -1]) - self.prompt_length + 1
            if input_ids.shape[1] > 1:
                self.rows = input_ids[:, 0].tolist() if row == 0 else self.rows
            script = self.scripts[self.rows[row]]
            logits[row, -1, script[min(place, len(script) - 1)]] = 30.0
        output.logits = logits
        return output


def generate_scripted(tokenizer, texts: list[str], sampling: SamplingConfig):
    scripts = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    model = Scripted(tokenizer, scripts, prompt_length=2)
    prompts = [[row, 5] for row in range(len(texts))]
    # One batch for each row: a scripted model does not follow rows that leave the batch.
    return generate(model, tokenizer, prompts, sampling, [0] * len(texts), batch_size=1), scripts


def test_a_stop_string_ends_the_row_and_is_kept(tokenizer):
    sampling = SamplingConfig(temperature=0, max_tokens=40, min_tokens=0, stop=("</answer>",))
    text = " 1 + 2 = 3 </think> <answer> 3 </answer>"
    (completion,), (script,) = generate_scripted(tokenizer, [text + " and more"], sampling)
    assert completion.text == text
    assert completion.finish_reason == "stop"
    assert not completion.truncated
    assert completion.token_ids == script[: len(tokenizer(text)["input_ids"])]


def test_text_is_cut_inside_the_token_that_completes_the_stop_string(tokenizer):
    # "= " may be one token: the stop string "=" ends inside of it, and the text ends there.
    sampling = SamplingConfig(temperature=0, max_tokens=40, min_tokens=0, stop=("wor",))
    (completion,), _ = generate_scripted(tokenizer, ["the working of it"], sampling)
    assert completion.text == "the wor"
    assert tokenizer.decode(completion.token_ids).startswith("the wor")


def test_eos_ends_the_row_and_is_kept_as_a_token_but_not_in_the_text(tokenizer):
    sampling = SamplingConfig(temperature=0, max_tokens=40, min_tokens=0)
    (completion,), (script,) = generate_scripted(tokenizer, [" 7 + 1"], sampling)
    assert completion.token_ids == script
    assert completion.text == " 7 + 1"
    assert completion.finish_reason == "stop"


def test_the_length_limit_is_a_truncation(tokenizer):
    sampling = SamplingConfig(temperature=0, max_tokens=3, min_tokens=0, stop=("</answer>",))
    (completion,), (script,) = generate_scripted(tokenizer, [" 7 + 1 - 2 + 3"], sampling)
    assert completion.token_ids == script[:3]
    assert completion.finish_reason == "length"
    assert completion.truncated


def test_min_tokens_holds_back_stop_strings(tokenizer):
    text = "</answer> 1 2 3 </answer> 4"
    for min_tokens, expected in ((0, "</answer>"), (1, "</answer> 1 2 3 </answer>")):
        sampling = SamplingConfig(
            temperature=0, max_tokens=40, min_tokens=min_tokens, stop=("</answer>",)
        )
        (completion,), _ = generate_scripted(tokenizer, [text], sampling)
        assert completion.text == expected


def test_min_tokens_holds_back_eos(tokenizer):
    sampling = SamplingConfig(temperature=0, max_tokens=12, min_tokens=5)
    (completion,), _ = generate_scripted(tokenizer, [""], sampling)  # the script is eos alone
    assert len(completion.token_ids) == 6
    assert tokenizer.eos_token_id not in completion.token_ids[:5]
    assert completion.token_ids[5] == tokenizer.eos_token_id


def test_a_completion_may_be_eos_alone(tokenizer):
    sampling = SamplingConfig(temperature=0, max_tokens=12, min_tokens=0)
    (completion,), _ = generate_scripted(tokenizer, [""], sampling)
    assert completion.token_ids == [tokenizer.eos_token_id]
    assert completion.text == ""
    assert completion.finish_reason == "stop"


PROMPTS = ["Q: 1 + 2\nA: <think>", "Q: 14 + 5 + 9 - 8\nA: <think>", "Q: 3\nA: <think>", "Q: 4 - 4"]


ALL_ROWS = range(len(PROMPTS))


def sample(model, tokenizer, sampling, rows=ALL_ROWS, **kwargs):
    prompt_ids = [tokenizer(PROMPTS[row])["input_ids"] for row in rows]
    return generate(model, tokenizer, prompt_ids, sampling, row_seeds(3, "t", 0, rows), **kwargs)


def test_greedy_decoding_equals_transformers_generate(tiny_model, tokenizer):
    tiny_model.eval()
    completions = sample(tiny_model, tokenizer, SamplingConfig(temperature=0, max_tokens=12))
    tokenizer.padding_side = "left"
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    expected = tiny_model.generate(**batch, do_sample=False, max_new_tokens=12, min_new_tokens=4)[
        :, batch["input_ids"].shape[1] :
    ]
    for completion, row in zip(completions, expected.tolist(), strict=True):
        assert completion.token_ids == row[: len(completion.token_ids)]


def test_a_row_does_not_depend_on_the_other_rows(tiny_model, tokenizer):
    sampling = SamplingConfig(max_tokens=16, min_tokens=0)
    together = sample(tiny_model, tokenizer, sampling)
    alone = [sample(tiny_model, tokenizer, sampling, rows=[row])[0] for row in range(len(PROMPTS))]
    pairs = sample(tiny_model, tokenizer, sampling, batch_size=2)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.token_ids for c in together] == [c.token_ids for c in pairs]


def test_rows_of_a_group_differ(tiny_model, tokenizer):
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    sampling = SamplingConfig(max_tokens=16)
    group = generate(tiny_model, tokenizer, [prompt] * 8, sampling, row_seeds(0, "r", 0, range(8)))
    assert len({tuple(c.token_ids) for c in group}) == 8


def test_rows_that_finish_early_leave_the_others_unchanged(tiny_model, tokenizer):
    # Half of all tokens end a row here, so the batch is compacted again and again.
    eos = list(range(0, len(tokenizer), 2))
    sampling = SamplingConfig(max_tokens=24, min_tokens=0)
    prompts = [tokenizer(PROMPTS[row % 4])["input_ids"] for row in range(32)]
    seeds = row_seeds(1, "r", 0, range(32))
    together = generate(tiny_model, tokenizer, prompts, sampling, seeds, eos_token_ids=eos)
    alone = [
        generate(tiny_model, tokenizer, [prompt], sampling, [seed], eos_token_ids=eos)[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert len({len(c.token_ids) for c in together}) > 3
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_samples_follow_the_distribution(tiny_model, tokenizer):
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(12)  # a peaked distribution
        logits = tiny_model(torch.tensor([prompt])).logits[0, -1]
    n, temperature = 4000, 0.7
    sampling = SamplingConfig(temperature=temperature, max_tokens=1, min_tokens=0)
    completions = generate(
        tiny_model, tokenizer, [prompt] * n, sampling, row_seeds(0, "r", 0, range(n))
    )
    counts = torch.bincount(
        torch.tensor([c.token_ids[0] for c in completions]), minlength=len(tokenizer)
    )
    probs = (logits / temperature).softmax(-1)
    # Five standard errors of each share.
    assert ((counts / n - probs).abs() < 5 * (probs * (1 - probs) / n).sqrt() + 1 / n).all()


def test_log_probs_and_entropies_are_those_of_a_forward_pass(tiny_model, tokenizer):
    sampling = SamplingConfig(temperature=0.8, top_p=0.9, max_tokens=10, min_tokens=0)
    for row, completion in enumerate(sample(tiny_model, tokenizer, sampling)):
        prompt = tokenizer(PROMPTS[row])["input_ids"]
        with torch.no_grad():
            logits = tiny_model(torch.tensor([prompt + completion.token_ids])).logits[0]
        log_probs = (logits[len(prompt) - 1 : -1] / 0.8).log_softmax(-1)
        tokens = torch.tensor(completion.token_ids)
        expected = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        assert torch.tensor(completion.log_probs) == pytest.approx(expected, abs=1e-5)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        assert torch.tensor(completion.entropies) == pytest.approx(entropies, abs=1e-5)


@pytest.mark.parametrize(
    "filters", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=lambda f: next(iter(f))
)
def test_the_narrowest_filter_is_greedy(tiny_model, tokenizer, filters):
    greedy = sample(tiny_model, tokenizer, SamplingConfig(temperature=0, max_tokens=8))
    filtered = sample(tiny_model, tokenizer, SamplingConfig(max_tokens=8, **filters))
    assert [c.token_ids for c in filtered] == [c.token_ids for c in greedy]


def test_a_stream_yields_every_row_once_as_it_ends(tiny_model, tokenizer):
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=3)
    sampling = SamplingConfig(max_tokens=6, min_tokens=0)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    rows = list(engine.stream(ids, sampling, list(range(len(ids)))))
    assert sorted(row for row, _ in rows) == list(range(len(ids)))
    assert in_order(rows) == generate(
        tiny_model, tokenizer, ids, sampling, list(range(len(ids))), batch_size=3
    )


def test_bad_input_says_what_to_do(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(tiny_model, tokenizer, [[5], []], SamplingConfig(), [0, 1])
    with pytest.raises(
        ValueError, match=r"prompt 1 has 4096 tokens, .* more than max_model_len 409"
    ):
        generate(tiny_model, tokenizer, [[5], [5] * 4096], SamplingConfig(), [0, 1])
    with pytest.raises(ValueError, match="got 1 prompts but 2 seeds"):
        generate(tiny_model, tokenizer, [[5]], SamplingConfig(), [0, 1])
