"""The SFT trainer on real tiny models: its arithmetic, its rows, its files, its resume."""

import copy
import inspect
import json
import logging
import math
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_models import make_tiny_model
from tiny_sft import TASK, TRACES, make_sft_trainer
from torch.nn.functional import log_softmax
from transformers import TrainerCallback

from trl_r1zero.data.tokenization import tokenize_prompt_and_output
from trl_r1zero.trainers import R1ZeroSFTTrainer, read_metrics
from trl_r1zero.trainers.epochs import TrainRow, epoch_batches


def train_lines(folder) -> list[dict]:
    return [line for line in read_metrics(folder) if "nll" in line]


def eval_lines(folder) -> list[dict]:
    return [line for line in read_metrics(folder) if "eval_accuracy" in line]


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def plain_loss(model, tokenizer, rows: Dataset, normalize_constant: float = 1.0) -> torch.Tensor:
    """The loss written out for one padded batch, without anything of the trainer's."""
    tensors = tokenize_prompt_and_output(list(rows["prompt"]), list(rows["response"]), tokenizer)
    logits_BTV = model(tensors["input_ids"]).logits
    log_probs_BT = (
        log_softmax(logits_BTV, dim=-1).gather(-1, tensors["labels"].unsqueeze(-1)).squeeze(-1)
    )
    sums_B = (log_probs_BT * tensors["response_mask"]).sum(dim=1)
    return -(sums_B / normalize_constant).mean()


# The loss and its gradient


def test_one_step_equals_plain_torch(tokenizer, tmp_path):
    """Two epochs of AdamW steps on the same rows, the last train batch of each a short one."""
    rows = TRACES.select(range(12))
    model = make_tiny_model(tokenizer)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
    )
    losses, norms = [], []
    for _ in range(2):
        for part in (range(8), range(8, 12)):
            loss = plain_loss(plain, tokenizer, rows.select(part), normalize_constant=20.0)
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0).item())
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())

    trainer = make_sft_trainer(
        tokenizer,
        tmp_path,
        traces=rows,
        model=model,
        shuffle_dataset=False,
        num_train_epochs=2,
        normalize_constant=20.0,
    )
    trainer.train()
    lines = train_lines(tmp_path)
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-6)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-5)
    torch.testing.assert_close(
        flat(trainer.model.parameters()), flat(plain.parameters()), atol=1e-6, rtol=0
    )


def test_the_loss_by_eye(tokenizer, tmp_path):
    """All weights 0: every token has probability 1/V, so the loss is known without a model."""
    model = make_tiny_model(tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    traces = Dataset.from_dict({"prompt": ["1 +", "2 +"], "response": [" 1 2", " 3 4 5 6"]})
    lengths = [2, 4]  # one token for each number
    trainer = make_sft_trainer(
        tokenizer, tmp_path, traces=traces, model=model, train_batch_size=2, normalize_constant=3.0
    )
    assert [len(row.response_ids) for row in trainer.rows] == lengths
    trainer.train()
    (line,) = train_lines(tmp_path)
    nats = math.log(len(tokenizer))
    assert line["loss"] == pytest.approx((2 / 3 + 4 / 3) / 2 * nats)
    assert line["nll"] == pytest.approx(nats)
    assert line["entropy"] == pytest.approx(nats)
    assert (line["length/mean"], line["length/max"]) == (3.0, 4.0)
    assert line["train_step"] == 1


def gradient(trainer: R1ZeroSFTTrainer, rows: list[TrainRow]) -> torch.Tensor:
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, rows)
    return flat(p.grad for p in trainer.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("fused", [False, True])
def test_the_cut_into_microbatches_does_not_change_the_gradient(tokenizer, tmp_path, fused):
    expected = make_tiny_model(tokenizer)
    plain_loss(expected, tokenizer, TRACES.select(range(8))).backward()
    cuts = [{"gradient_accumulation_steps": number} for number in (1, 2, 4, 8)]
    cuts += [{**cuts[0], "max_tokens_per_microbatch": 60}, {**cuts[1], "pack_rows": True}]
    cuts += [{**cuts[1], "share_prefixes": True}]
    for cut in cuts:
        trainer = make_sft_trainer(tokenizer, tmp_path, fused_lm_head=fused, **cut)
        torch.testing.assert_close(
            gradient(trainer, trainer.rows[:8]),
            flat(p.grad for p in expected.parameters()),
            atol=2e-5,  # of gradients of up to 30
            rtol=1e-5,
        )


def test_shares_of_processes_add_up_to_the_train_batch(tokenizer, tmp_path):
    """Five rows on four processes: what fills up changes nothing."""
    trainer = make_sft_trainer(tokenizer, tmp_path, gradient_accumulation_steps=8)
    rows = trainer.rows[:5]
    whole = gradient(trainer, rows)
    shares = []
    for rank in range(4):
        trainer.policy.rank, trainer.policy.processes = rank, 4
        shares.append(gradient(trainer, rows))
    torch.testing.assert_close(sum(shares) / 4, whole, atol=2e-5, rtol=1e-5)


def test_micro_batches_are_as_wide_as_their_own_longest_row(tokenizer, tmp_path, monkeypatch):
    trainer = make_sft_trainer(tokenizer, tmp_path, gradient_accumulation_steps=4)
    widths = []
    real = trainer.compute_loss

    def spy(model, inputs, *args, **kwargs):
        widths.append(inputs.input_ids.shape)
        return real(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", spy)
    gradient(trainer, trainer.rows[:8])
    lengths = sorted((row.num_tokens for row in trainer.rows[:8]), reverse=True)
    assert widths == [(2, lengths[first] - 1) for first in (0, 2, 4, 6)]


# Rows


def test_prompt_and_response_are_tokenised_apart_without_an_extra_eos(tokenizer, tmp_path):
    trainer = make_sft_trainer(tokenizer, tmp_path)
    row, trace = trainer.rows[3], TRACES[3]
    assert row.prompt_ids == tokenizer(trace["prompt"])["input_ids"]
    assert tokenizer.decode(row.response_ids) == trace["response"]
    assert row.response_ids[-1] != tokenizer.eos_token_id
    with_eos = make_sft_trainer(tokenizer, tmp_path, append_eos=True).rows[3]
    assert with_eos.response_ids == [*row.response_ids, tokenizer.eos_token_id]


def test_long_rows_are_dropped_and_counted_or_an_error(tokenizer, tmp_path, caplog):
    lengths = [row.num_tokens for row in make_sft_trainer(tokenizer, tmp_path).rows]
    limit = sorted(lengths)[len(lengths) // 2]
    too_long = sum(length > limit for length in lengths)
    assert 0 < too_long < len(lengths)
    with caplog.at_level(logging.WARNING):
        trainer = make_sft_trainer(tokenizer, tmp_path, max_length=limit)
    assert [row.num_tokens for row in trainer.rows] == [n for n in lengths if n <= limit]
    assert f"{too_long} of {len(lengths)} rows are longer than max_length ({limit}" in caplog.text
    with pytest.raises(ValueError, match=f"{too_long} of 40 rows .* set overlong to drop"):
        make_sft_trainer(tokenizer, tmp_path, max_length=limit, overlong="error")
    with pytest.raises(ValueError, match=r"40 of 40 rows .* none is left; raise max_length"):
        make_sft_trainer(tokenizer, tmp_path, max_length=5)


def test_what_cannot_be_trained_on_is_an_error(tokenizer, tmp_path):
    empty = Dataset.from_dict({"prompt": ["a", "b"], "response": ["c", ""]})
    with pytest.raises(ValueError, match=r"1 of 2 responses have no tokens, the first is .* row 1"):
        make_sft_trainer(tokenizer, tmp_path, traces=empty)
    assert len(make_sft_trainer(tokenizer, tmp_path, traces=empty, append_eos=True).rows) == 2
    with pytest.raises(ValueError, match="train_dataset lacks the columns \\['response'\\]"):
        make_sft_trainer(tokenizer, tmp_path, traces=TASK.train_dataset)
    with pytest.raises(ValueError, match="train_dataset has no rows"):
        make_sft_trainer(tokenizer, tmp_path, traces=TRACES.select([]))
    with pytest.raises(ValueError, match="eval_every is set, but there is no reward_fn"):
        make_sft_trainer(tokenizer, tmp_path, reward=None, eval_every=1)
    with pytest.raises(TypeError, match="reward_fn must be a function of \\(response"):
        make_sft_trainer(tokenizer, tmp_path, reward="a_reward_model")


def test_every_epoch_has_each_row_once_in_an_order_of_its_own():
    rows = [TrainRow([number], [0]) for number in range(10)]

    def numbers(**kwargs) -> list[list[int]]:
        return [[row.prompt_ids[0] for row in b] for b in epoch_batches(rows, 4, **kwargs)]

    assert numbers(shuffle=False, seed=(0, 0)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    first, second = (numbers(shuffle=True, seed=(0, epoch)) for epoch in (0, 1))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert all(sorted(chain.from_iterable(order)) == list(range(10)) for order in (first, second))
    assert first != second
    assert first == numbers(shuffle=True, seed=(0, 0))


# Runs


def test_a_run_validates_keeps_the_best_and_leaves_its_files(tokenizer, tmp_path):
    trainer = make_sft_trainer(tokenizer, tmp_path, eval_every=2, save_every=3)
    before = flat(p.clone() for p in trainer.model.parameters())
    trainer.train()
    assert (flat(trainer.model.parameters()) != before).float().mean() > 0.9
    lines = train_lines(tmp_path)
    assert [line["train_step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["train_step"] for line in eval_lines(tmp_path)] == [0, 2, 4, 5]
    assert lines[-1]["nll"] < lines[0]["nll"]
    assert lines[-1]["num_tokens"] == sum(row.num_tokens for row in trainer.rows)
    for line in eval_lines(tmp_path):
        assert line["eval_num_examples"] == 10
        assert line["eval_entropy"] > 0
        assert "nll" not in line  # nothing of training's line
    best = max(eval_lines(tmp_path), key=lambda line: line["eval_accuracy"])
    facts = json.loads((tmp_path / "best" / "best.json").read_text())
    assert facts["eval_accuracy"] == best["eval_accuracy"]
    for name in (
        "checkpoint-5/optimizer.pt",
        "best/model.safetensors",
        "evaluations/train_step_00000.md",
        "evaluations/train_step_00005.jsonl",
        "environment.json",
        "config.json",
    ):
        assert (tmp_path / name).is_file(), name


def test_with_fewer_logs_than_updates_the_line_has_the_newest_step(tokenizer, tmp_path):
    every = make_sft_trainer(tokenizer, tmp_path / "every")
    every.train()
    make_sft_trainer(tokenizer, tmp_path / "some", logging_steps=2, eval_every=3).train()
    single, paired = train_lines(tmp_path / "every"), train_lines(tmp_path / "some")
    # The fifth update's numbers are in the line of the run's end.
    assert [line["train_step"] for line in paired] == [2, 4, 5]
    assert [line["train_step"] for line in eval_lines(tmp_path / "some")] == [0, 3, 5]
    assert paired[0]["nll"] == pytest.approx((single[0]["nll"] + single[1]["nll"]) / 2)
    assert paired[1]["num_tokens"] == single[3]["num_tokens"]


class StopAfter(TrainerCallback):
    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.updates:
            control.should_save = True
            control.should_training_stop = True


@pytest.mark.parametrize("updates", [2, 5, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer, tmp_path, updates):
    """Inside of an epoch, at the end of one, and in the second."""
    settings = {"num_train_epochs": 2, "eval_every": 4}
    whole = make_sft_trainer(tokenizer, tmp_path / "whole", **settings)
    whole.train()
    make_sft_trainer(
        tokenizer, tmp_path / "parts", callbacks=[StopAfter(updates)], **settings
    ).train()
    resumed = make_sft_trainer(tokenizer, tmp_path / "parts", **settings)
    (tmp_path / "parts" / "checkpoint-8").mkdir()  # a kill has cut it off
    resumed.train(resume_from_checkpoint=True)
    keys = ("train_step", "loss", "nll", "entropy", "grad_norm", "num_tokens", "learning_rate")
    lines = [
        [[line[key] for key in keys] for line in train_lines(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert lines[0] == lines[1]
    assert [line["eval_accuracy"] for line in eval_lines(tmp_path / "whole")] == [
        line["eval_accuracy"] for line in eval_lines(tmp_path / "parts")
    ]
    assert torch.equal(flat(whole.model.parameters()), flat(resumed.model.parameters()))


@pytest.mark.parametrize("settings", [{}, {"max_tokens_per_microbatch": 60}])
def test_entropies_that_a_backend_does_not_give_are_the_policys_own(
    settings, tokenizer, tmp_path, monkeypatch
):
    """Sampled by transformers, which has them; computed as they are for a vLLM server."""
    trainer = make_sft_trainer(tokenizer, tmp_path, min_tokens=0, **settings)
    prompts = TASK.eval_dataset["prompt"][:5]
    prompt_ids, completions = trainer.sampler.sample(
        prompts, trainer.validator.sampling, range(5), ""
    )
    expected = [completion.entropies for completion in completions]
    for completion in completions:
        completion.entropies = None
    trainer.sampler.server = SimpleNamespace(release=lambda: None)
    seen, forward = [], trainer.model.forward

    def record(input_ids, **inputs):
        seen.append((*input_ids.shape, inputs["use_cache"]))
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(trainer.model, "forward", record)
    # What the forward can be told is read off the real one.
    trainer.policy._parameters = inspect.signature(forward).parameters
    trainer.sampler.fill_in_entropies(prompt_ids, completions, trainer.validator.sampling)
    for completion, entropies in zip(completions, expected, strict=True):
        assert len(entropies) == len(completion.token_ids) > 1
        assert completion.entropies == pytest.approx(entropies, abs=1e-5)
    assert sum(rows for rows, _, _ in seen) == 5
    limit = settings.get("max_tokens_per_microbatch")
    for rows, width, use_cache in seen:
        assert not use_cache
        assert limit is None or rows == 1 or rows * width <= limit
    assert len(seen) >= (1 if limit is None else 2)


def test_lora_trains_the_adapter_only(tokenizer, tmp_path):
    trainer = make_sft_trainer(
        tokenizer, tmp_path, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora" in name for name in moved)


def test_a_reward_that_says_why_is_shown_in_the_table(tokenizer, tmp_path):
    trainer = make_sft_trainer(tokenizer, tmp_path, reward=TASK.reward, eval_every=5)
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == 0.0
    rows = (tmp_path / "evaluations" / "train_step_00000.jsonl").read_text().splitlines()
    assert len(rows) == 10
    assert all(json.loads(row)["rule"] for row in rows)


def test_the_model_learns_to_answer(tokenizer, tmp_path):
    """Traces whose answers are the reward's: accuracy goes from nothing to all."""
    traces = Dataset.from_dict(
        {"prompt": TASK.train_dataset["prompt"], "response": [" 1 3 5 </answer>"] * 40}
    )
    trainer = make_sft_trainer(
        tokenizer,
        tmp_path,
        traces=traces,
        reward=_says_135,
        num_train_epochs=8,
        learning_rate=1e-2,
        eval_every=40,
    )
    trainer.train()
    first, last = eval_lines(tmp_path)
    assert first["eval_accuracy"] == 0.0
    assert last["eval_accuracy"] > 0.8
    assert last["eval_entropy"] < first["eval_entropy"]


def _says_135(response: str, ground_truth: str) -> dict[str, float]:
    return {"reward": float(response.startswith(" 1 3 5"))}
