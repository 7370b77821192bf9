"""Trainers and evaluation with a tokenizer as real models have it: merges across the ends of stop
strings, no pad token, a chat template whose turns end with another token than eos."""

import logging

import pytest
import torch
from datasets import Dataset
from launch_rewards import odd_digits
from real_tokenizers import byte_level_tokenizer
from tiny_models import make_tiny_model

from trl_r1zero import get_response_log_probs
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.recipe.trace_arguments import TraceArguments
from trl_r1zero.trainers import (
    ExpertIterationConfig,
    ExpertIterationTrainer,
    R1ZeroDPOConfig,
    R1ZeroDPOTrainer,
    R1ZeroGRPOConfig,
    R1ZeroGRPOTrainer,
    R1ZeroSFTConfig,
    R1ZeroSFTTrainer,
    read_metrics,
)
from trl_r1zero.trainers.kept_rollouts import read_kept

CHAT = {
    "task": "chain_arithmetic",
    "task_args": {"num_train": 16, "num_validation": 4},
    "prompt": "chat",
}
COMMON = {"eval_every": None, "save_every": None, "disable_tqdm": True, "seed": 0}


@pytest.fixture
def tokenizer():
    return byte_level_tokenizer()


def test_grpo_ends_with_the_turn_and_trains_on_its_end(tokenizer, tmp_path):
    task = TaskArguments(**CHAT).load(tokenizer)
    model = make_tiny_model(tokenizer)
    trainer = R1ZeroGRPOTrainer(
        model=model,
        reward_funcs=odd_digits,
        args=R1ZeroGRPOConfig(
            output_dir=str(tmp_path),
            n_grpo_steps=1,
            rollout_batch_size=16,
            group_size=4,
            train_batch_size=16,
            gradient_accumulation_steps=2,
            max_completion_length=150,
            min_tokens=1,
            log_rollouts_every=None,
            **COMMON,
        ),
        train_dataset=task.train_dataset,
        processing_class=tokenizer,
        stop=task.prompt.stop,
    )
    examples = [row for row in list(task.train_dataset)[:4] for _ in range(4)]
    rollouts = trainer.collect_rollouts(examples).rollouts
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ended = [row.completion for row in rollouts if turn in row.completion.token_ids]
    assert ended  # of 150 tokens, some rows draw this one
    for completion in ended:
        assert completion.token_ids.index(turn) == len(completion.token_ids) - 1
        assert (completion.finish_reason, completion.truncated) == ("stop", False)
        assert "<|im_end|>" not in completion.text
    # Pad is eos here, and what ends a row is no padding: it is in the loss.
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (micro_batch, *_) = trainer.cut(rollouts)
    marked = micro_batch.labels[micro_batch.response_mask].tolist()
    assert turn in marked
    assert sum(len(part.labels[part.response_mask]) for part in trainer.cut(rollouts)) == sum(
        len(row.completion.token_ids) for row in rollouts if row.has_gradient
    )
    model.eval()
    row = rollouts[0]
    ids = torch.tensor([row.prompt_ids + row.completion.token_ids])
    with torch.no_grad():
        expected = get_response_log_probs(model, ids[:, :-1], ids[:, 1:])["log_probs"][0]
    assert row.completion.log_probs[1:] == pytest.approx(
        expected[len(row.prompt_ids) :].tolist(), abs=1e-4
    )
    trainer.train()
    assert len(read_metrics(tmp_path)) > 0


def sft_trainer(tokenizer, tmp_path, rows: Dataset, stop=(), **settings) -> R1ZeroSFTTrainer:
    return R1ZeroSFTTrainer(
        model=make_tiny_model(tokenizer),
        args=R1ZeroSFTConfig(output_dir=str(tmp_path), train_batch_size=4, **COMMON, **settings),
        train_dataset=rows,
        processing_class=tokenizer,
        stop=stop,
    )


def test_sft_ends_responses_with_the_turn_or_eos_once(tokenizer, tmp_path):
    traces = TraceArguments(**CHAT).load_traces(tokenizer, None)
    rows = traces.train_dataset.select(range(4))
    turn, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    for append_eos in (False, True):
        trainer = sft_trainer(tokenizer, tmp_path, rows, traces.prompt.stop, append_eos=append_eos)
        for row, text in zip(trainer.rows, rows, strict=True):
            assert row.response_ids[-1] == turn
            assert tokenizer.decode(row.prompt_ids) == text["prompt"]
            assert tokenizer.decode(row.response_ids[:-1]) == text["response"]
    written = Dataset.from_dict(
        {"prompt": ["q"] * 3, "response": ["a<|im_end|>", "b", "c<|endoftext|>"]}
    )
    chat = sft_trainer(tokenizer, tmp_path, written, (turn,), append_eos=True)
    assert [row.response_ids[1:] for row in chat.rows] == [[turn], [turn], [eos]]
    plain = sft_trainer(tokenizer, tmp_path, written, append_eos=True)
    assert [row.response_ids[1:] for row in plain.rows] == [[turn, eos], [eos], [eos]]
    # The eos token is trained on, though rows are padded with it.
    assert tokenizer.pad_token_id == eos
    marked = [part.labels[part.response_mask].tolist() for part in plain.cut(plain.rows)]
    assert sum(ids.count(eos) for ids in marked) == 3
    assert sum(map(len, marked)) == 7
    plain.train()


def test_expert_iteration_keeps_the_end_of_the_turn(tokenizer, tmp_path):
    task = TaskArguments(**CHAT).load(tokenizer)
    trainer = ExpertIterationTrainer(
        model=make_tiny_model(tokenizer),
        args=ExpertIterationConfig(
            output_dir=str(tmp_path),
            n_ei_steps=1,
            ei_batch_size=4,
            group_size=4,
            train_batch_size=8,
            max_completion_length=150,
            min_tokens=1,
            **COMMON,
        ),
        train_dataset=task.train_dataset,
        reward_fn=lambda response, truth: {"reward": 1.0},
        processing_class=tokenizer,
        stop=task.prompt.stop,
    )
    trainer.train()
    kept = read_kept(tmp_path, 1)
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ended = [rollout for rollout in kept if turn in rollout.token_ids]
    assert ended
    assert all(rollout.token_ids.index(turn) == len(rollout.token_ids) - 1 for rollout in ended)


def test_dpo_without_a_pad_token(tokenizer, tmp_path):
    rows = {"instruction": ["a", "b"] * 2, "chosen": ["x", "yy zz"] * 2, "rejected": ["b", "d"] * 2}
    trainer = R1ZeroDPOTrainer(
        model=make_tiny_model(tokenizer),
        args=R1ZeroDPOConfig(output_dir=str(tmp_path), train_batch_size=4, **COMMON),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    assert all(row.chosen_ids[-1] == tokenizer.eos_token_id for row in trainer.rows)
    trainer.train()


def test_a_model_that_ends_otherwise_than_its_tokenizer(tokenizer, tmp_path, caplog):
    """As a conversion of SmolLM2 has it: eos is the token that begins a turn."""
    rows = Dataset.from_dict({"prompt": ["q"] * 4, "response": ["a"] * 4})
    with caplog.at_level(logging.WARNING):
        sft_trainer(tokenizer, tmp_path, rows)
        assert "eos token" not in caplog.text
        wrong = byte_level_tokenizer(eos_token="<|im_start|>")
        model = make_tiny_model(tokenizer)
        R1ZeroSFTTrainer(
            model=model,
            args=R1ZeroSFTConfig(output_dir=str(tmp_path), train_batch_size=4, **COMMON),
            train_dataset=rows,
            processing_class=wrong,
        )
    assert (
        "the tokenizer's eos token is '<|im_start|>' (1), but the model's config says "
        "'<|endoftext|>' (0); set eos_token in tokenizer_config.json"
    ) in caplog.text


def test_an_evaluation_in_the_chat_template(tokenizer, tmp_path):
    folder = tmp_path / "model"
    make_tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = EvaluationArguments(
        **CHAT, model=str(folder), backend="transformers", max_tokens=8, dtype="float32"
    )
    loaded = arguments.load()
    with loaded.grader:
        assert loaded.sampling.stop == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
        assert loaded.examples[0]["prompt"].startswith("<|im_start|>user\n")
        assert loaded.settings["prompt"] == "chat"
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="got a tokenizer without chat template"):
        arguments.load()
