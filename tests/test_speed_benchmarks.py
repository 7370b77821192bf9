"""The benchmarks' machinery on a very small workload; what they measure is not asserted."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from tiny_models import REPOSITORY, make_tiny_model

TINY = ["--rollouts", "16", "--group_size", "4", "--rows", "8", "--device", "cpu"]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of benchmarks/, whose modules import one another by their bare names."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(REPOSITORY / "benchmarks") in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.mark.parametrize("loss", ["dr_grpo", "grpo", "dapo"])
def test_the_optimizer_phase_computes_one_gradient_on_both_sides(benchmark, tmp_path, capsys, loss):
    output = tmp_path / "result.json"
    arguments = [*TINY, "--loss", loss, "--accuracies", "0.5", "--pairs", "2", "--warmup", "0"]
    phase = benchmark("optimizer_phase")
    phase.main([*arguments, "--memory_runs", "0", "--peak_tflops", "1", "--output", str(output)])

    report = json.loads(output.read_text())
    assert report["packages"]["trl"] and report["started"] and report["threads"] == 1
    assert report["rows"] == {"TRL": 8, "trl-r1zero": 8}
    (result,) = report["results"]
    assert result["gradient"]["relative_l2"] < 2e-6
    assert result["gradient"]["norm"] > 1e-4
    assert len(result["ratio"]["values"]) == 2
    for side in ("TRL", "trl-r1zero"):
        seconds, speed = result["seconds"][side]["values"], result["tokens_per_second"][side]
        assert np.multiply(seconds, speed["values"]).mean() == pytest.approx(result["tokens"])
        assert 0 < result["peak_share_needed"][side] <= result["peak_share"][side] < 1

    printed = capsys.readouterr().out
    assert "16 rollouts in groups of 4" in printed
    assert f"| {result['gradient']['relative_l2']:.1e} |" in printed
    assert f"| **{result['ratio']['median']:.2f} (" in printed
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert {len(rows), *(row.count("|") for row in rows[:3])} == {9, 7}


def test_a_gradient_of_another_loss_is_an_error(benchmark):
    phase = benchmark("optimizer_phase")
    limits = ["--accuracies", "0.5", "--memory_runs", "0", "--max_gradient_difference", "1e-12"]
    with pytest.raises(SystemExit, match="the two sides do not compute the same loss"):
        phase.main([*TINY, *limits])


def test_the_large_model_wants_a_gpu(benchmark, capsys):
    phase = benchmark("optimizer_phase")
    with pytest.raises(SystemExit):
        phase.parse(["--model_shape", "qwen2.5-math-1.5b", "--device", "cpu"])
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(("accuracy", "share"), [(0.1, 0.77), (0.5, 0.39), (0.9, 0.77)])
def test_so_many_groups_are_all_right_or_all_wrong(benchmark, accuracy, share):
    """Beta-binomial: of n = 8, P(all right) is the product of (a + i) / (a + b + i), i < n."""
    draw_rewards = benchmark("rollout_workloads").draw_rewards
    a, b, i = accuracy, 1 - accuracy, np.arange(8)
    expected = np.prod((a + i) / (1 + i)) + np.prod((b + i) / (1 + i))
    assert expected == pytest.approx(share, abs=0.005)
    rewards = draw_rewards(np.random.default_rng(0), 4000, 8, accuracy, 1.0)
    rewards_NG = np.array(rewards).reshape(-1, 8)
    assert rewards_NG.mean() == pytest.approx(accuracy, abs=0.02)
    alike = (rewards_NG == rewards_NG[:, :1]).all(axis=1)
    assert alike.mean() == pytest.approx(expected, abs=0.03)


def test_pairs_take_turns_at_going_first(benchmark):
    order = []
    pairs = benchmark("paired").run_pairs(
        lambda number: order.append(f"a{number}") or f"a{number}",
        lambda number: order.append(f"b{number}") or f"b{number}",
        pairs=2,
        warmup=1,
    )
    assert order == ["b-1", "a-1", "a0", "b0", "b1", "a1"]
    assert pairs == [("a0", "b0"), ("a1", "b1")]


def test_the_difference_of_gradients(benchmark):
    """(3, 4) against (3, 4.5): 0.5 at most, and 0.5 of a norm of 5."""
    sides = benchmark("optimizer_sides")
    stock, ours = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 4.5])}
    difference = sides.gradient_difference(stock, ours)
    assert (difference.max_abs, difference.norm) == (0.5, 5.0)
    assert difference.relative_l2 == pytest.approx(0.1)
    with pytest.raises(ValueError, match="different parameters"):
        sides.gradient_difference(stock, {})


def test_floating_point_operations(benchmark):
    """N = 10 weights, one layer of width 2, a row of 3 tokens: 6 x 10 x 3 + 6 x 1 x 3^2 x 2."""
    workloads = benchmark("rollout_workloads")
    shape = workloads.ModelShape(2, 4, 1, 1, 1, None)
    assert workloads.training_flops(shape, 10, [3]) == 180 + 108


def test_end_to_end_reports_means_over_seeds(benchmark):
    end_to_end = benchmark("end_to_end")
    about = {
        "device": "cpu",
        "platform": "x",
        "packages": {"torch": "2", "trl": "1"},
        "commit": "c",
        "started": "now",
    }

    def run(method, seed, *points):
        return end_to_end.Run(
            method, seed, 0.75, 2.0, 2.0, [end_to_end.Point(*point) for point in points], about
        )

    runs = [
        run("trl", 0, (0, 0.0, 0.0, 0.2), (10, 40.0, 36.0, 0.8), (12, 50.0, 46.0, 0.9)),
        run("trl", 1, (0, 0.0, 0.0, 0.2), (12, 44.0, 40.0, 0.75)),
        run("ours", 0, (0, 0.0, 0.0, 0.2), (12, 30.0, 28.0, 0.8)),
        run("ours", 1, (0, 0.0, 0.0, 0.2), (12, 30.0, 28.0, 0.7)),
    ]
    assert runs[0].reached.step == 10
    trl, ours = end_to_end.markdown(runs).splitlines()[-2:]
    assert trl.startswith(
        "| TRL, transformers | 2 | 2 | 11.0 ± 1.0 | 42.0 ± 2.0 | 38.0 ± 2.0 | 2.0 ± 0.0 |"
    )
    assert ours.startswith("| ours, transformers | 2 | 1 | - | - | - |")


def test_end_to_end_says_what_is_missing(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark("end_to_end").parse(["--base_policy", str(tmp_path)])
    assert "`make quickstart` makes it" in capsys.readouterr().err


def test_a_real_model_is_timed_in_turns(benchmark, tokenizer, tmp_path, capsys):
    make_tiny_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    real_model = benchmark("real_model")
    common = ["--model", str(tmp_path), "--pairs", "1", "--tokens", "6"]
    real_model.main(["generation", *common, "--rows", "6", "--group", "3", "--dtype", "autocast"])
    real_model.main(["training", *common, "--rows", "2", "--prompt_tokens", "5"])
    printed = capsys.readouterr().out.splitlines()
    lines = [json.loads(line) for line in printed if line.startswith("{")]
    sides = [line["side"] for line in lines if "side" in line]
    assert sides == ["model.generate", "TransformersEngine", "float32", "autocast", "bfloat16"]
    assert all(line["tokens"] in (36, 22) for line in lines if "side" in line)
