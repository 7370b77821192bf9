"""The users' commands `recipes/instruction_tuning.py` and `accelerate launch recipes/dpo.py`."""

import gzip
import json
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset
from launching import launch, run_here
from tiny_models import make_tiny_model

from trl_r1zero.data.preferences import load_hh, split_validation
from trl_r1zero.trainers import R1ZeroDPOConfig, R1ZeroDPOTrainer, read_metrics

DPO = {
    "num_eval_pairs": 9,
    "train_batch_size": 12,
    "gradient_accumulation_steps": 3,
    "learning_rate": 1.0e-3,
    "eval_every": 2,
    "save_every": None,
    "shuffle_dataset": False,
}


def column(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(folder) if name in line]


@pytest.fixture(scope="module")
def hh(tmp_path_factory) -> Path:
    """Two files of HH's form; in each a conversation of several turns, which is left out."""
    folder = tmp_path_factory.mktemp("hh")
    for name in ("harmless-base", "helpful-base"):
        rows = []
        for number in range(20):
            start = f"\n\nHuman: {name} {number}?\n\nAssistant:"
            rows.append({"chosen": f"{start} yes {number % 7}", "rejected": f"{start} no"})
        longer = f"{start} Why?\n\nHuman: So.\n\nAssistant:"
        rows.append({"chosen": f"{longer} yes", "rejected": f"{longer} no"})
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_dpo_on_two_processes_is_dpo_on_one(tokenizer, tiny_model_folder, tmp_path, hh):
    """31 pairs in batches of 12: the last one is short, and uneven over the processes."""
    done = launch(
        {**DPO, "train_data": str(hh)},
        tmp_path / "two",
        tiny_model_folder,
        processes=2,
        script="dpo.py",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    train, validation = split_validation(load_hh(hh), 9, 0)
    assert len(train) == 31

    def dataset(pairs):
        names = ("instruction", "chosen", "rejected")
        return Dataset.from_list([{name: getattr(pair, name) for name in names} for pair in pairs])

    R1ZeroDPOTrainer(
        model=make_tiny_model(tokenizer),
        args=R1ZeroDPOConfig(
            output_dir=str(tmp_path / "one"),
            disable_tqdm=True,
            **{name: value for name, value in DPO.items() if name != "num_eval_pairs"},
        ),
        train_dataset=dataset(train),
        eval_dataset=dataset(validation),
        processing_class=tokenizer,
    ).train()
    for name in ("loss", "accuracy", "margin", "eval_loss", "eval_accuracy", "eval_margin"):
        ours = column(tmp_path / "two", name)
        assert ours == pytest.approx(column(tmp_path / "one", name), abs=1e-5), name
    assert column(tmp_path / "two", "eval_num_pairs") == [9, 9, 9]
    assert column(tmp_path / "two", "eval_loss")[-1] < 0.69
    assert (tmp_path / "two" / "final" / "model.safetensors").is_file()
    assert (tmp_path / "two" / "best" / "best.json").is_file()
    assert "accuracy (implicit reward)" in done.stdout
    assert "accuracy (log-probability)" in (tmp_path / "two" / "report.md").read_text()
    assert (tmp_path / "two" / "curve.png").is_file()


def test_instruction_tuning_from_a_command_line(tiny_model_folder, tmp_path, capsys):
    rows = [
        {"prompt": f"Count to {n}.", "response": " ".join(map(str, range(n)))} for n in range(40)
    ]
    for split in ("train", "test"):
        with gzip.open(tmp_path / f"{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[split == "test" :: 2])
    recipe = {
        "train_data": str(tmp_path / "train.jsonl.gz"),
        "eval_data": str(tmp_path / "test.jsonl.gz"),
        "cache_dir": str(tmp_path / "cache"),
        "seq_length": 32,
        "total_batch_size": 8,
        "learning_rate": 2.0e-3,
        "eval_steps": 20,
        "save_steps": 20,
        "num_train_epochs": 2,
    }
    run = partial(
        run_here, recipe, tmp_path / "run", tiny_model_folder, script="instruction_tuning.py"
    )
    run()
    before, *_, after = column(tmp_path / "run", "eval_loss")
    assert after < before - 0.1
    out = capsys.readouterr().out
    assert "chunks of 32 tokens from 20 documents" in out
    assert "loss (nats per token)" in out
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "curve.png").is_file()
    # Neither a second run over the first, nor a key that does not exist.
    with pytest.raises(SystemExit, match="2"):
        run()
    with pytest.raises(SystemExit):
        run("--batch_sise", "4")
    assert "batch_sise" in capsys.readouterr().err
