"""Dynamic sampling, difficulty filter, curriculum, replay and the soft ramp in real tiny runs."""

import json
from pathlib import Path

import pytest
import torch
from launch_rewards import odd_digits
from launching import launch, run_here
from test_grpo_trainer import StopAfter
from tiny_grpo import TASK, make_rollouts, make_trainer, train_lines
from tiny_models import make_tiny_model

from trl_r1zero.data.bad_rows import BadRowsError
from trl_r1zero.functional import soft_overlong_penalty
from trl_r1zero.trainers import R1ZeroGRPOConfig, read_metrics
from trl_r1zero.trainers.pass_rates import file_of
from trl_r1zero.trainers.problem_sampling import informative

ALL = {
    "dynamic": {"max_rounds": 3, "oversampling": 1.5},
    "filter": {"completions": 4, "min_pass_rate": 0, "max_pass_rate": 0.75},
    "curriculum": {"bands": [0.2, 0.6], "weights": [1, 2, 1]},
    "replay": {"share": 0.25, "max_replays": 2},
}


def a_third_is_right(response, ground_truth):
    """Of about a third of responses, so many groups of four are alike."""
    right = float(sum(map(ord, response)) % 3 == 0)
    return {"reward": right, "format_reward": 1.0, "answer_reward": right}


def never(response, ground_truth):
    return {"reward": 0.0, "format_reward": 0.0, "answer_reward": 0.0}


def curve(folder):
    timed = ("seconds", "elapsed", "tokens_per_second", "train_")
    return [
        {k: v for k, v in line.items() if not any(word in k for word in timed)}
        for line in read_metrics(folder)
        if "train_runtime" not in line
    ]


def test_which_groups_teach_something(tokenizer):
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    rows = make_rollouts(tokenizer, [3] * 6, rewards, 2)
    groups = [rows[:2], rows[2:4], rows[4:]]
    args = R1ZeroGRPOConfig(use_cpu=True)
    assert informative(groups, "advantage", args) == [True, False, False]
    assert informative(groups, "accuracy", args) == [True, False, False]
    # The lengths of two wrong answers make an advantage, but neither of them is right.
    rows[4].rewards["length_reward"] = -0.5
    assert informative(groups, "advantage", args) == [True, False, True]
    assert informative(groups, "accuracy", args) == [True, False, False]
    # Nothing is learnt from rows that are kept out of the loss.
    rows[0].trained = rows[1].trained = False
    assert informative(groups, "advantage", args) == [False, False, True]
    # Without a baseline, equal rewards teach something too.
    raw = R1ZeroGRPOConfig(use_cpu=True, loss_type="no_baseline")
    assert informative(groups, "advantage", raw) == [False, True, True]


def test_without_a_need_for_it_dynamic_sampling_changes_nothing(tokenizer, tmp_path):
    """All groups have an advantage: the run is the plain one, digit for digit."""

    def lengths(response, ground_truth):
        return {"reward": float(sum(map(ord, response)))}

    for name, settings in {"plain": None, "dynamic": {"dynamic": {}}}.items():
        make_trainer(
            tokenizer, tmp_path / name, reward=lengths, problem_sampling=settings, n_grpo_steps=3
        ).train()
    lines = curve(tmp_path / "dynamic")
    assert all(line["problems/rounds"] == 1 for line in lines)
    without = [{k: v for k, v in x.items() if not k.startswith("problems/")} for x in lines]
    assert without == curve(tmp_path / "plain")


def test_it_samples_on_until_enough_groups_have_an_advantage(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        reward=a_third_is_right,
        problem_sampling={"dynamic": {"max_rounds": 20}},
        n_grpo_steps=3,
    )
    sampled, sample = [], trainer.problems.sample
    trainer.problems.sample = lambda *given: sampled.append(sample(*given)) or sampled[-1]
    trainer.train()
    lines = train_lines(tmp_path)
    assert max(line["problems/rounds"] for line in lines) > 1
    assert sum(line["problems/rounds"] for line in lines) == len(sampled)
    for line in lines:
        assert line["zero_advantage_groups"] == line["problems/filled_groups"] == 0
        assert line["problems/informative_groups"] == 4
        assert line["problems/sampled_groups"] >= 4
    # All that was sampled is counted, and no problem twice in a step.
    tokens = [sum(row.num_tokens for row in batch.rollouts) for batch in sampled]
    assert lines[-1]["num_tokens"] == sum(tokens)
    assert sum(line["problems/sampled_tokens"] for line in lines) == sum(tokens)
    first = sampled[: int(lines[0]["problems/rounds"])]
    prompts = [row.prompt for batch in first for row in batch.rollouts]
    assert len({*prompts}) == len(prompts) / 4


def test_at_the_bound_the_batch_is_filled_with_the_groups_that_there_are(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer, tmp_path, reward=never, problem_sampling={"dynamic": {"max_rounds": 2}}
    )
    trainer.train()
    for line in train_lines(tmp_path):
        assert line["problems/rounds"] == 2
        assert line["problems/sampled_groups"] == 8
        assert line["problems/filled_groups"] == 4
        assert line["zero_advantage_groups"] == 1.0
        assert line["loss"] == 0.0


@pytest.mark.parametrize("settings", [{}, {"train_batch_size": 8, "loss_type": "grpo_clip"}])
def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer, tmp_path, settings):
    settings = {
        "n_grpo_steps": 5,
        "eval_every": 2,
        "save_every": 2,
        "save_total_limit": None,
        "problem_sampling": ALL,
        "overlong_buffer": 5,
        "reward": a_third_is_right,
        **settings,
    }
    make_trainer(tokenizer, tmp_path / "straight", **settings).train()
    halfway = make_trainer(tokenizer, tmp_path / "resumed", **settings)
    updates = halfway.args.updates_per_grpo_step
    halfway.add_callback(StopAfter(2 * updates))
    halfway.train()
    resumed = make_trainer(
        tokenizer, tmp_path / "resumed", model=make_tiny_model(tokenizer, seed=9), **settings
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / f"checkpoint-{2 * updates}"))
    lines = curve(tmp_path / "straight")
    assert curve(tmp_path / "resumed") == lines
    # All parts did something.
    trained = train_lines(tmp_path / "straight")
    assert any(line["problems/rounds"] > 1 for line in trained)
    assert any(line["problems/replayed_groups"] > 0 for line in trained)
    assert len({line["problems/mean_pass_rate"] for line in trained}) > 1
    assert all(-1 <= line["length_reward"] <= 0 for line in trained)


def test_a_checkpoint_of_a_plain_run_is_refused(tokenizer, tmp_path):
    make_trainer(tokenizer, tmp_path / "plain", save_every=1).train()
    trainer = make_trainer(tokenizer, tmp_path / "other", problem_sampling={"dynamic": {}})
    with pytest.raises(ValueError, match="a run without problem_sampling"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))


# The difficulty filter


def filtered(tokenizer, folder, *, model=None, **settings):
    given = {"completions": 4, "min_pass_rate": 0.25, "max_pass_rate": 0.5, **settings}
    return make_trainer(
        tokenizer,
        folder,
        reward=a_third_is_right,
        model=model,
        n_grpo_steps=3,
        problem_sampling={"filter": given},
    )


def test_the_filter_keeps_problems_within_its_bounds_and_its_rates_on_disk(
    tokenizer, tmp_path, capsys
):
    trainer = filtered(tokenizer, tmp_path / "first")
    trainer.train()
    (file,) = (tmp_path / "pass_rates").iterdir()
    first, *problems = [json.loads(line) for line in file.read_text().splitlines()]
    assert first["identity"]["completions"] == 4
    assert first["identity"]["sampling"]["max_tokens"] == 10
    assert [line["problem"] for line in problems] == list(range(32))
    assert problems[7]["question"] == TASK.train_dataset[7]["question"]
    kept = [line["problem"] for line in problems if 1 <= line["right"] <= 2]
    facts = json.loads((tmp_path / "first" / "problem_filter.json").read_text())
    assert (facts["kept"], facts["problems"], facts["measured_now"]) == (len(kept), 32, 32)
    assert facts["kept"] + facts["below"] + facts["above"] == 32
    assert f"{len(kept)} of 32 problems" in capsys.readouterr().out
    # Only they are trained on, and what it cost is counted.
    lines = train_lines(tmp_path / "first")
    tokens = sum(line["tokens"] for line in problems)
    assert lines[0]["num_tokens"] == tokens + lines[0]["problems/sampled_tokens"]

    # A second run measures nothing, and is the first one, digit for digit.
    again = filtered(tokenizer, tmp_path / "second")
    measured = []
    again.problems._measure = measured.append
    seen, collect = set(), again.problems.collect

    def watched(*given):
        batch = collect(*given)
        seen.update(row.prompt for row in batch.rollouts)
        return batch

    again.problems.collect = watched
    again.train()
    assert not measured
    assert seen <= {TASK.train_dataset[row]["prompt"] for row in kept}
    assert curve(tmp_path / "second") == curve(tmp_path / "first")
    facts = json.loads((tmp_path / "second" / "problem_filter.json").read_text())
    assert facts["measured_now"] == 0


def test_pass_rates_are_of_one_model_and_one_way_to_sample(tokenizer, tmp_path):
    for name, model, settings in (
        ("a", None, {}),
        ("b", make_tiny_model(tokenizer, seed=9), {}),
        ("c", None, {"seed": 1}),
        ("d", None, {"completions": 2}),
        ("e", None, {"max_pass_rate": 0.75}),  # of the rates of a
    ):
        filtered(tokenizer, tmp_path / name, model=model, **settings).train()
    assert len(list((tmp_path / "pass_rates").iterdir())) == 4


def test_a_measurement_that_broke_off_goes_on(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_r1zero.trainers.problem_sampling._ROWS_PER_FILE", 32)
    filtered(tokenizer, tmp_path / "whole", cache_dir=str(tmp_path / "whole_rates")).train()
    cut = filtered(tokenizer, tmp_path / "cut")
    measure, calls = cut.problems._measure, []

    def dies(problems):
        calls.append(problems)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(problems)

    cut.problems._measure = dies
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    (file,) = (tmp_path / "pass_rates").iterdir()
    assert len(file.read_text().splitlines()) == 1 + 16
    filtered(tokenizer, tmp_path / "on").train()
    (whole,) = (tmp_path / "whole_rates").iterdir()
    assert file.read_text() == whole.read_text()
    facts = json.loads((tmp_path / "on" / "problem_filter.json").read_text())
    assert facts["measured_now"] == 16


def test_a_filter_that_leaves_too_little_is_an_error(tokenizer, tmp_path):
    trainer = filtered(tokenizer, tmp_path, min_pass_rate=0.999, max_pass_rate=1.0)
    with pytest.raises(BadRowsError, match=r"difficulty filter: 0 of 32 .*needs 4 different ones"):
        trainer.train()


def test_a_file_of_something_else_is_an_error(tokenizer, tmp_path):
    trainer = filtered(tokenizer, tmp_path / "run")
    trainer.train()
    (file,) = (tmp_path / "pass_rates").iterdir()
    good = file.read_text()
    for wrong in ("{}\n", "no json\n", good.replace('"seed": 0', '"seed": 5'), good[:-30]):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="remove"):
            filtered(tokenizer, tmp_path / f"again{len(wrong)}").train()
    assert file_of(Path("x"), {"model": {"name": ""}, "a": 1}).name.startswith("model-")


# The soft ramp


def test_the_ramp_counts_tokens_as_sampled_and_leaves_the_reward_metric_alone(tokenizer, tmp_path):
    # Random tokens end early at one of many stop strings.
    settings = {"reward": odd_digits, "n_grpo_steps": 1, "stop": tuple("aeiou123"), "min_tokens": 1}
    batches = {}
    for name, own in {"plain": {}, "ramp": {"overlong_buffer": 8, "overlong_penalty": 2.0}}.items():
        trainer = make_trainer(tokenizer, tmp_path / name, **settings, **own)
        trainer.train()
        batches[name] = trainer._rollout_batch.rollouts
    lengths = torch.tensor([row.length for row in batches["ramp"]])
    expected = (2 * soft_overlong_penalty(lengths, 10, 8)).tolist()
    assert [row.rewards["length_reward"] for row in batches["ramp"]] == expected
    assert len({*expected}) > 1
    for row, plain in zip(batches["ramp"], batches["plain"], strict=True):
        assert row.rewards["reward"] == plain.rewards["reward"]
        assert row.training_reward == row.rewards["reward"] + row.rewards["length_reward"]
    (line,), (plain_line,) = train_lines(tmp_path / "ramp"), train_lines(tmp_path / "plain")
    assert line["reward"] == plain_line["reward"]
    assert line["length_reward"] == pytest.approx(sum(expected) / len(expected))
    assert line["grad_norm"] != plain_line["grad_norm"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlong_buffer": 2000}, "overlong_buffer must be at most max_completion_length"),
        ({"overlong_penalty": 2.0}, "no effect without overlong_buffer"),
        ({"overlong_buffer": 0}, "at least 1"),
        ({"overlong_buffer": 8, "advantage": "max_rl"}, "max_rl cannot have"),
        ({"problem_sampling": {"replay": {"share": 0.01}}}, "less than one of the 32 groups"),
        ({"problem_sampling": {"dynamics": {}}}, "did you mean 'dynamic'"),
        (
            {
                "problem_sampling": {"dynamic": {}},
                "max_staleness": 1,
                "use_vllm": True,
                "loss_type": "grpo_clip",
                "old_log_probs": "sampler",
            },
            "with max_staleness the next one is sampled before",
        ),
    ],
)
def test_settings_that_cannot_work_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        R1ZeroGRPOConfig(use_cpu=True, **settings)


# The user's command


RECIPE = {
    "task": "chain_arithmetic",
    "task_args": {"num_train": 32, "num_validation": 9},
    "reward": "launch_rewards.odd_digits",
    "reward_workers": 0,
    "n_grpo_steps": 3,
    "rollout_batch_size": 12,
    "group_size": 3,
    "train_batch_size": 12,
    "max_completion_length": 12,
    "learning_rate": 3.0e-3,
    "eval_every": None,
    "save_every": None,
    "overlong_buffer": 6,
    "problem_sampling": {
        **ALL,
        "dynamic": {"max_rounds": 3, "metric": "accuracy"},
        "filter": {"completions": 3, "min_pass_rate": 0},
    },
}


def test_two_processes_do_what_one_does(tiny_model_folder, tmp_path):
    """Also where a round has an odd number of completions."""
    runs = ("one", "two")
    run_here(RECIPE, tmp_path / "one" / "run", tiny_model_folder)
    done = launch(RECIPE, tmp_path / "two" / "run", tiny_model_folder, processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (train_lines(tmp_path / name / "run") for name in runs)
    assert any(line["problems/rounds"] > 1 for line in one)
    assert any(line["problems/sampled_groups"] % 2 for line in one)
    for ours, theirs in zip(one, two, strict=True):
        counted = [key for key in ours if key.startswith("problems/")]
        assert {key: ours[key] for key in counted} == {key: theirs[key] for key in counted}
        for key in ("loss", "grad_norm", "reward", "length_reward", "num_tokens"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-6), key
    rates = [next((tmp_path / name / "pass_rates").iterdir()).read_text() for name in runs]
    assert rates[0] == rates[1]
    report = (tmp_path / "one" / "run" / "report.md").read_text()
    assert "difficulty filter" in report
