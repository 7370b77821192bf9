"""What a library run leaves behind: `final/`, `best/`, report, page, and cards that are true."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from report_runs import write_metrics
from tiny_grpo import make_trainer
from transformers import AutoModelForCausalLM

from trl_r1zero.evaluation.metrics import score_interval
from trl_r1zero.reports.model_card import write_model_card
from trl_r1zero.trainers.notebook import NotebookBar
from trl_r1zero.trainers.results import remove_results


def words_of(card: Path) -> str:
    return " ".join(card.read_text().split())


def test_a_library_run_leaves_what_a_recipe_s_does(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        results=True,
        n_grpo_steps=1,
        eval_every=1,
        num_eval_examples=10,
        save_every=1,
    )
    trainer.train()
    for name in ("best/best.json", "report.md", "curve.png", "index.html", "checkpoint-1"):
        assert (tmp_path / name).exists(), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    for name, weight in trainer.model.state_dict().items():
        assert (loaded.state_dict()[name] == weight).all(), name
    assert "`final`" not in (tmp_path / "report.md").read_text().split("## What is missing")[-1]
    assert "the model at the end" in (tmp_path / "report.md").read_text()
    for folder in ("final", "best", "."):
        card = words_of(tmp_path / folder / "README.md")
        assert "None" not in card and "made in memory, trained with GRPO" in card
        assert "given in Python" in card and "learning_rate: 0.001" in card
        assert "95% interval of the accuracy, 1: " in card or "before" in card
        assert (tmp_path / folder / "README.md").read_text().count(str(tmp_path)) == 0
        assert ModelCard.load(tmp_path / folder / "README.md").data.tags[-1] == "grpo"
    assert "after GRPO step 1 of 1" in words_of(tmp_path / "final" / "README.md")
    assert "of the best validation" in words_of(tmp_path / "best" / "README.md")


def test_who_wants_none_of_it_leaves_it_out(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, results=True, n_grpo_steps=1)
    remove_results(trainer)
    trainer.train()
    assert not {"final", "report.md", "index.html"} & {path.name for path in tmp_path.iterdir()}


# Cards


@pytest.fixture
def run(tmp_path) -> Path:
    """The files of a recipe's run, as far as a card needs them."""
    folder = tmp_path / "runs" / "seed_0"
    lines = [
        {"step": step, "grpo_step": step, "elapsed_seconds": 10.0 * step + 1,
         "eval_accuracy": accuracy, "eval_accuracy_stderr": 0.02, "eval_num_examples": 500.0}
        for step, accuracy in ((0, 0.2), (2, 0.7), (4, 0.6))
    ]  # fmt: skip
    lines.append({"step": 4, "grpo_step": 4, "elapsed_seconds": 50.0, "reward": 0.5})
    write_metrics(folder, lines)
    (folder / "recipe.yaml").write_text(
        "model_name_or_path: owner/model\ntask: countdown\nreward: null\ntrain_data: a.jsonl\n"
        "output_dir: /secret/place\nlearning_rate: 0.5\nseed: 0\nhub_token: hidden\n"
    )
    (folder / "config.json").write_text(json.dumps({"n_grpo_steps": 4}))
    facts = {"packages": {"trl": "1.16.0"}, "started": "2026-01-01", "commit": "abc123",
             "device": "cpu", "num_processes": 1}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(facts))
    for name in ("final", "best"):
        (folder / name).mkdir()
    (folder / "best" / "best.json").write_text(json.dumps({**lines[1], "grpo_step": 2}))
    return folder


def test_a_card_says_recipe_data_results_commit_and_base_model(run):
    write_model_card(run, run / "final")
    card = words_of(run / "final" / "README.md")
    assert "`owner/model`, trained with GRPO by trl-r1zero; the weights after GRPO step 4" in card
    for fact in ("countdown", "a.jsonl", "abc123", "trl 1.16.0", "learning_rate: 0.5"):
        assert fact in card, fact
    for absent in ("secret", "hidden", "null", "None"):
        assert absent not in card, absent
    low, high = score_interval(0.6, 0.6 * 0.4 / 0.02**2)
    assert f"95% interval of the accuracy, 4: {low:.3f} to {high:.3f}" in card
    data = ModelCard.load(run / "final" / "README.md").data
    assert (data.base_model, data.library_name) == ("owner/model", "transformers")


def test_the_card_of_the_best_model_says_how_it_was_picked(run):
    (run / "best" / "adapter_config.json").write_text("{}")
    write_model_card(run, run / "best")
    card = words_of(run / "best" / "README.md")
    assert "0.700 ± 0.020" in card and "0.600" not in card
    assert "of 3 validations was picked on these very questions" in card
    assert ModelCard.load(run / "best" / "README.md").data.library_name == "peft"


def test_the_base_of_a_model_that_was_trained_here_is_what_its_card_says(run):
    write_model_card(run, run / "final")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("owner/model", str(run / "final")))
    write_model_card(run, run / "best")
    assert ModelCard.load(run / "best" / "README.md").data.base_model == "owner/model"


def test_what_is_not_known_is_not_said(tmp_path):
    write_metrics(tmp_path, [{"step": 1, "grpo_step": 1, "elapsed_seconds": 1.0, "reward": 0.5}])
    write_model_card(tmp_path, tmp_path)
    card = words_of(tmp_path / "README.md")
    assert "The run was not validated." in card and "commit" not in card
    assert "base_model" not in card


def test_an_interval_stays_within_0_and_1():
    assert score_interval(0.0, 100)[0] == 0.0 and score_interval(1.0, 100)[1] > 1 - 1e-9
    # Wilson's interval of 8 in 10, from the literature.
    assert score_interval(0.8, 10) == pytest.approx([0.490, 0.943], abs=5e-4)


# Jupyter


def test_a_notebook_shows_our_metrics():
    shown = []
    bar = NotebookBar(20, "GRPO step", shown.append)
    bar.log(0, {"eval_accuracy": 0.25, "eval_accuracy_stderr": 0.0125, "eval_length": 20.0})
    for step in (1, 2):
        bar.update(1)
        bar.log(step, {"reward": 0.1 * step, "loss": None})
    bar.log(2, {"eval_accuracy": 0.5, "eval_accuracy_stderr": 0.0125, "eval_length": 20.0})
    bar.write("1 < 2")
    bar.close()
    page = shown[-1]
    assert "2 of 20 updates" in page and "left" in page and "1 &lt; 2" in page
    assert "<th>accuracy</th>" in page and "<td>0.5 ± 0.013</td>" in page and "No log" not in page
    assert page.count("<tr>") == 3 and page.count("<polyline") == 2
    assert "<td>0.2</td>" in page  # the newest training reward, beside its validation


def test_a_notebook_is_not_drawn_at_each_update():
    shown = []
    bar = NotebookBar(1000, "update", shown.append)
    for step in range(1000):
        bar.update(1)
        bar.log(step, {"loss": 1.0 / (step + 1)})
    assert len(shown) < 200
    bar.close()
    assert "1000 of 1000 updates" in shown[-1] and "training loss</span>, from 0 to 1" in shown[-1]
