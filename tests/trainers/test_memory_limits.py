"""What a process takes at a time: decided from settings and memory, and the same in its results."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from launching import CPU
from memory_shapes import qwen_math_config
from tiny_grpo import TASK, make_trainer
from tiny_models import REPOSITORY, make_tiny_model
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from trl_r1zero.devices.memory import CONTEXT_BYTES, GIB, training_memory
from trl_r1zero.devices.training_setup import ModelShape, TrainingSetup
from trl_r1zero.generation import Completion, SamplingConfig
from trl_r1zero.trainers import policy_forward
from trl_r1zero.trainers.memory_limits import (
    DEFAULT_GENERATION_ROWS,
    TrainingMemory,
    bytes_to_train_with,
    forward_limits,
    microbatch_limits,
    training_memory_of,
)
from trl_r1zero.trainers.microbatches import MicroBatchLimits, cut_rows

# Qwen2.5-Math-1.5B's, from its config; 14,336 keys and values a token.
QWEN = ModelShape.from_config(qwen_math_config())
ROW = 1300  # a prompt of 276 tokens and 1,024 new ones
FLOAT32 = TrainingSetup(longest_row=ROW)
BFLOAT16 = dataclasses.replace(FLOAT32, weights_dtype="bfloat16", autocast=False)
LORA = dataclasses.replace(BFLOAT16, trainable_parameters=20_000_000)
CHECKPOINTED = dataclasses.replace(BFLOAT16, gradient_checkpointing=True)


def memory(setup: TrainingSetup, gib: float) -> TrainingMemory:
    return TrainingMemory(QWEN, setup, int(gib * GIB))


# Micro-batches


def test_a_cpu_keeps_rows_as_they_are_set_or_two():
    assert microbatch_limits(None, None, None, packed=False) == MicroBatchLimits(2)
    assert microbatch_limits(64, None, None, packed=False) == MicroBatchLimits(64)
    assert microbatch_limits(64, 500, None, packed=True) == MicroBatchLimits(64, 500, padded=False)


def test_a_gpu_has_a_budget_of_tokens_and_rows_only_if_they_are_set():
    assert microbatch_limits(None, None, 9216, packed=False) == MicroBatchLimits(None, 9216)
    assert microbatch_limits(2, None, 9216, packed=False) == MicroBatchLimits(2, 9216)
    assert microbatch_limits(None, 500, 9216, packed=False) == MicroBatchLimits(None, 500)


def test_rows_without_a_limit_are_cut_by_tokens_alone():
    rows = [SimpleNamespace(num_tokens=10) for _ in range(100)]
    parts = cut_rows(rows, microbatch_limits(None, None, 250, packed=False))
    assert [len(part) for part in parts] == [25] * 4


@pytest.mark.parametrize(
    ("setup", "gib", "least", "most"),
    [
        (FLOAT32, 80, 8192, 32768),
        (BFLOAT16, 80, 12288, 32768),
        (BFLOAT16, 24, ROW, 4096),
        (CHECKPOINTED, 24, 4096, 32768),
        (LORA, 24, 2048, 8192),
    ],
)
def test_tokens_of_a_micro_batch_of_the_recipes_model(setup, gib, least, most):
    """More than the two rows of old wherever there is room, and within memory."""
    tokens = memory(setup, gib).microbatch_tokens()
    assert least <= tokens <= most
    total = training_memory(QWEN, dataclasses.replace(setup, tokens=tokens)).total
    assert total <= 0.9 * gib * GIB


def test_what_takes_memory_takes_tokens():
    alone = memory(FLOAT32, 80).microbatch_tokens()
    several = dataclasses.replace(FLOAT32, processes=2)  # DDP's buckets
    with_reference = dataclasses.replace(FLOAT32, reference_model=True)
    for setup in (several, with_reference):
        assert memory(setup, 80).microbatch_tokens() < alone


def test_a_row_that_does_not_fit_is_said_with_what_helps():
    with pytest.raises(ValueError, match=r"a row of 1300 tokens needs .* dtype: bfloat16"):
        memory(FLOAT32, 24).microbatch_tokens()


def test_the_memory_of_an_unknown_architecture_is_not_known(caplog):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2))
    args = SimpleNamespace(
        use_cpu=True, fused_lm_head=None, optim="adamw_torch", bf16=False, pack_rows=False,
        gradient_checkpointing=False, share_prefixes=False,
    )  # fmt: skip
    assert training_memory_of(model, args, 80 * GIB, longest_row=ROW) is None
    assert "the memory of a gpt2 is not known" in caplog.text
    assert "micro-batches of 2 rows" in caplog.text


def test_bytes_of_a_gpu_are_what_is_free_and_what_the_process_has(monkeypatch):
    assert bytes_to_train_with(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 * GIB)
    assert bytes_to_train_with(torch.device("cuda", 0)) == 56 * GIB + CONTEXT_BYTES
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (76 * GIB, 80 * GIB))
    assert bytes_to_train_with(torch.device("cuda", 0)) == 80 * GIB


# Forwards without graph


def test_entropies_of_1024_answers_take_dozens_of_forwards_on_a_gpu():
    """Of 600 tokens on average, as long answers are; two rows at a time took 512."""
    rows = [SimpleNamespace(num_tokens=100 + 1000 * n // 1023) for n in range(1024)]
    two_rows = MicroBatchLimits(2)
    assert len(cut_rows(rows, two_rows)) == 512
    for setup, gib, most in ((FLOAT32, 80, 50), (BFLOAT16, 80, 50), (BFLOAT16, 24, 60)):
        limits = forward_limits(two_rows, memory(setup, gib))
        assert limits.tokens * QWEN.vocabulary_size <= 2**31
        assert len(cut_rows(rows, limits)) <= most
    # On a CPU, and where memory is not known, four times the rows.
    assert len(cut_rows(rows, forward_limits(two_rows, None))) == 128
    assert forward_limits(MicroBatchLimits(64), None) == MicroBatchLimits(64)
    assert forward_limits(MicroBatchLimits(None, 500), None) == MicroBatchLimits(None, 500)


def test_a_forward_has_a_row_at_least():
    assert ROW < memory(BFLOAT16, 20).forward_tokens() < memory(BFLOAT16, 24).forward_tokens()
    assert memory(FLOAT32, 24).forward_tokens() == ROW


def test_a_trainer_computes_entropies_in_few_forwards_or_none(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    trainer.sampler.server = SimpleNamespace(release=lambda: None)
    prompt_ids = [[1, 2, 3]] * 1024
    completions = [Completion([5] * (1 + n % 30), "", "stop") for n in range(1024)]
    forwards, log_probs = [], trainer.policy.log_probs

    def count(model, rows, *args, **kwargs):
        forwards.append(rows.input_ids.numel())
        return log_probs(model, rows, *args, **kwargs)

    trainer.policy.log_probs = count
    trainer.policy.rows_per_microbatch = 2
    trainer.policy.memory = SimpleNamespace(forward_tokens=lambda: 4096)
    trainer.policy.token_budget = None
    trainer.sampler.fill_in_entropies(prompt_ids, completions, SamplingConfig())
    assert len(forwards) <= 8
    assert max(forwards) <= 4096
    assert all(len(c.entropies) == len(c.token_ids) for c in completions)

    forwards.clear()
    trainer.args.completion_entropies = False
    unknown = [Completion([5], "", "stop") for _ in range(4)]
    trainer.sampler.fill_in_entropies(prompt_ids[:4], unknown, SamplingConfig())
    assert forwards == []
    assert all(c.entropies is None for c in unknown)


# Generation


def test_completions_at_a_time_by_memory():
    # 14,336 keys and values of 2 bytes a token: 37 MB a row, besides its logits.
    rows = memory(BFLOAT16, 24).generation_rows(ROW)
    assert 64 <= rows <= 256
    assert memory(FLOAT32, 80).generation_rows(ROW) > 256
    assert memory(BFLOAT16, 24).generation_rows(4 * ROW) < rows / 2
    # All keys and values of that many rows are within what is left beside weights and optimizer.
    static = training_memory(QWEN, BFLOAT16).static
    assert rows * ROW * 14336 * 2 < 0.9 * 24 * GIB - static
    assert memory(FLOAT32, 24).generation_rows(ROW) == 1  # nothing is left, and it is tried


def batches_of(trainer, monkeypatch) -> list[int]:
    """Rows of each forward of one token."""
    seen, forward = [], trainer.model.forward

    def record(*args, **kwargs):
        if "past_key_values" in kwargs and kwargs["input_ids"].shape[1] == 1:
            seen.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(trainer.model, "forward", record)
    return seen


@pytest.mark.parametrize("settings", [{}, {"per_device_eval_batch_size": 5}])
def test_rollouts_and_validation_are_generated_in_bounded_batches(
    tokenizer, tmp_path, monkeypatch, settings
):
    """And are the same as at once, row by row."""
    examples = [example for example in TASK.train_dataset.to_list()[:4] for _ in range(4)]
    batches = {}
    for name, given in (("at once", {}), ("bounded", settings)):
        trainer = make_trainer(
            tokenizer, tmp_path, model=make_tiny_model(tokenizer), eval_every=1, **given
        )
        if not given and name == "bounded":  # as on a GPU on which five fit
            trainer.policy.memory = SimpleNamespace(generation_rows=lambda tokens: 5)
        seen = batches_of(trainer, monkeypatch)
        rollouts = trainer.collect_rollouts(examples).rollouts
        of_rollouts = list(seen)
        metrics = trainer.evaluate()
        metrics.pop("eval_seconds")
        batches[name] = max(of_rollouts), max(seen[len(of_rollouts) :])
        results = ([row.completion.token_ids for row in rollouts], metrics)
        if name == "at once":
            expected = results
    assert batches == {"at once": (16, 10), "bounded": (5, 5)}
    assert results[0] == expected[0]
    assert results[1] == pytest.approx(expected[1], abs=1e-5)


def test_a_cpu_generates_the_default_rollout_batch_at_once(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    assert trainer.policy.memory is None
    assert trainer.sampler.generation_rows(12) == DEFAULT_GENERATION_ROWS == 256


# A trainer on a GPU that is only said to be there


def test_a_trainer_derives_its_budget_once_and_says_so(tokenizer, tmp_path, capsys, monkeypatch):
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        )
    )  # fmt: skip
    trainer = make_trainer(tokenizer, tmp_path, model=model, gradient_accumulation_steps=None)
    monkeypatch.setattr(policy_forward, "bytes_to_train_with", lambda device: 4 * GIB)
    budget = trainer.policy.limits.tokens
    assert trainer.policy.limits == MicroBatchLimits(None, budget)
    assert budget > 1000
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"micro-batches of at most {budget:,} tokens (unless max_tokens_per")
    assert "4.0 GiB for this process, of which weights, gradients and optimizer take" in line
    assert trainer.policy.memory.setup.longest_row == trainer.policy.longest_row()
    # What is set counts.
    trainer.args.max_tokens_per_microbatch = 100
    assert trainer.policy.limits == MicroBatchLimits(None, 100)


def test_memory_that_is_too_little_leaves_single_rows(tokenizer, tmp_path, caplog, monkeypatch):
    trainer = make_trainer(tokenizer, tmp_path, gradient_accumulation_steps=None)
    monkeypatch.setattr(policy_forward, "bytes_to_train_with", lambda device: CONTEXT_BYTES)
    assert trainer.policy.limits.tokens == trainer.policy.longest_row()
    assert "It may not fit into memory: a row of" in caplog.text


def test_out_of_memory_says_what_to_set(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, max_tokens_per_microbatch=4096)

    def fails(model, micro_batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.compute_loss = fails
    with pytest.raises(torch.OutOfMemoryError) as error:
        trainer.forward_and_backward(trainer.model, ["a micro-batch"])
    assert str(error.value).startswith("CUDA out of memory.\nMicro-batches hold 4,096 tokens")
    assert "Set max_tokens_per_microbatch to fewer, such as 2048" in str(error.value)


def test_generation_out_of_memory_says_what_to_set(tokenizer, tmp_path, monkeypatch):
    trainer = make_trainer(tokenizer, tmp_path, per_device_eval_batch_size=64)

    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer.model, "forward", fails)
    with pytest.raises(torch.OutOfMemoryError) as error:
        trainer.collect_rollouts(TASK.train_dataset.to_list()[:4])
    assert str(error.value) == (
        "CUDA out of memory.\n64 completions are generated at a time; set "
        "per_device_eval_batch_size to fewer, such as 32"
    )


def test_processes_agree_on_the_budget_of_the_fullest_device(tmp_path):
    """Two of them; otherwise their collective calls would not meet."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CPU)),
            *("--num_processes", "2", "--main_process_port", "0"),
            *(str(REPOSITORY / "tests" / "uneven_memory.py"), str(tmp_path)),
        ],
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["tokens"] == second["tokens"]
    assert first["micro_batches"] == second["micro_batches"]
    assert (first["alone"], second["alone"]) == (True, False)
    assert done.stdout.decode().count("micro-batches of at most") == 1
