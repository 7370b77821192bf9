"""Packed instruction tuning by transformers' Trainer on a tiny model."""

import copy
import dataclasses
import json

import pytest
import torch
from tiny_models import make_tiny_model
from torch.nn.functional import cross_entropy

from trl_r1zero import PackedSFTDataset
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.chain_arithmetic import solve_trace
from trl_r1zero.trainers import (
    InstructionTuningConfig,
    make_instruction_tuning_trainer,
    read_metrics,
)
from trl_r1zero.trainers.instruction_tuning import collate_chunks


@pytest.fixture(scope="module")
def chunks(tokenizer, tmp_path_factory) -> dict[str, PackedSFTDataset]:
    folder = tmp_path_factory.mktemp("instructions")
    task = get_task("chain_arithmetic", num_train=60, num_validation=20)
    datasets = {}
    for split in ("train", "validation"):
        rows = [
            {"prompt": example.question, "response": solve_trace(example.question)}
            for example in task.load(split=split)
        ]
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        datasets[split] = PackedSFTDataset(
            tokenizer, path, 64, shuffle=False, cache_dir=folder, show_progress=False
        )
    return datasets


def make_config(folder, **settings) -> InstructionTuningConfig:
    settings = {"save_strategy": "no", "disable_tqdm": True, **settings}
    return InstructionTuningConfig(output_dir=str(folder), **settings)


def plain_loss(model, chunks) -> torch.Tensor:
    """The mean over all tokens of all chunks, written out."""
    logits_BTV = model(torch.stack([chunk["input_ids"] for chunk in chunks])).logits
    labels_BT = torch.stack([chunk["labels"] for chunk in chunks])
    return cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten())


def test_losses_equal_plain_torch(tokenizer, tmp_path, chunks):
    """Six chunks in batches of four by twos: accumulation, and a short last batch."""
    data = torch.utils.data.Subset(chunks["train"], range(6))
    model = make_tiny_model(tokenizer)
    plain = copy.deepcopy(model)
    config = make_config(
        tmp_path,
        total_batch_size=4,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        warmup_steps=0,
        eval_strategy="steps",
        eval_steps=1,
        train_sampling_strategy="sequential",
    )
    assert config.gradient_accumulation_steps == 2
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses, eval_losses = [], []
    evaluated = [chunks["validation"][i] for i in range(3)]
    for part in (range(4), range(4, 6)):
        eval_losses.append(plain_loss(plain, evaluated).item())
        loss = plain_loss(plain, [data[i] for i in part])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    eval_losses.append(plain_loss(plain, evaluated).item())

    trainer = make_instruction_tuning_trainer(
        model, config, data, torch.utils.data.Subset(chunks["validation"], range(3)), tokenizer
    )
    trainer.train()
    lines = read_metrics(tmp_path)
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(losses, abs=1e-5)
    logged = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert logged == pytest.approx(eval_losses, abs=1e-5)
    assert [line["tuning_step"] for line in lines] == [0, 1, 1, 2, 2, 2]


def test_the_loss_falls_with_the_handouts_schedule(tokenizer, tmp_path, chunks):
    config = make_config(
        tmp_path,
        total_batch_size=8,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        num_train_epochs=3,
        eval_steps=10,
    )
    trainer = make_instruction_tuning_trainer(
        make_tiny_model(tokenizer), config, chunks["train"], chunks["validation"], tokenizer
    )
    trainer.train()
    lines = read_metrics(tmp_path)
    before, *_, after = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert after < before - 1.0
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    # 3% of the updates to warm up, then down along a cosine, almost to 0.
    assert rates[0] == 0.0
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(2e-3)
    assert peak == -(-len(rates) * 3 // 100)
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 2e-5


def test_defaults_are_the_handouts(tmp_path):
    config = make_config(tmp_path)
    assert (config.total_batch_size, config.gradient_accumulation_steps) == (32, 16)
    assert (config.learning_rate, config.lr_scheduler_type) == (2e-5, "cosine")
    assert (config.warmup_steps, config.num_train_epochs) == (0.03, 1)
    assert (config.adam_beta1, config.adam_beta2) == (0.9, 0.95)
    assert config.eval_strategy == "steps"
    assert config.bf16 == torch.accelerator.is_available()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_batch_size": 31}, r"must be a multiple of .*2 x 1"),
        ({"total_batch_size": 0}, "total_batch_size .0. must be"),
        ({"gradient_accumulation_steps": 3}, "set total_batch_size and per_device_train"),
    ],
)  # fmt: skip
def test_batch_sizes_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **settings)


def test_a_config_can_be_replaced(tmp_path):
    config = make_config(tmp_path)
    assert dataclasses.replace(config, learning_rate=1.0).gradient_accumulation_steps == 16
    assert dataclasses.replace(config, total_batch_size=8).gradient_accumulation_steps == 4


def test_validation_needs_chunks(tokenizer, tmp_path, chunks):
    model = make_tiny_model(tokenizer)
    with pytest.raises(ValueError, match="eval_strategy is steps, but there is no eval_dataset"):
        make_instruction_tuning_trainer(model, make_config(tmp_path), chunks["train"])
    config = make_config(tmp_path, eval_strategy="no")
    trainer = make_instruction_tuning_trainer(model, config, chunks["train"])
    assert not trainer.args.eval_on_start


def test_next_tokens_are_not_shifted_twice(tokenizer, chunks):
    batch = collate_chunks([chunks["train"][0], chunks["train"][1]])
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (2, 64)
    model = make_tiny_model(tokenizer)
    expected = plain_loss(model, [chunks["train"][0], chunks["train"][1]])
    torch.testing.assert_close(model(**batch).loss, expected)
