"""Several validation sets in a run, and problems with several right answers."""

import json

import pytest
from launch_rewards import odd_digits
from tiny_models import make_tiny_model

from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.recipe.trace_arguments import TraceArguments
from trl_r1zero.reports.report import write_report
from trl_r1zero.trainers import (
    ExpertIterationConfig,
    ExpertIterationTrainer,
    R1ZeroGRPOConfig,
    R1ZeroGRPOTrainer,
    R1ZeroSFTConfig,
    R1ZeroSFTTrainer,
    read_metrics,
)

PROBLEMS = [
    {"problem": f"{n} + {n}", "answer": [str(2 * n), f"{2 * n}.0"] if n % 2 else str(2 * n)}
    for n in range(8)
]
COMMON = {
    "train_batch_size": 8,
    "eval_every": 1,
    "save_every": None,
    "num_eval_examples": 5,
    "eval_max_completion_length": 8,
    "disable_tqdm": True,
    "seed": 0,
}


def odd_digits_of_lists(response, ground_truth):
    """All ground truths of a data set are lists where one is."""
    assert isinstance(ground_truth, list), ground_truth
    return odd_digits(response, ground_truth)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return str(file)


def arguments(data, cls=TaskArguments, **changes):
    settings = {
        "task": "math",
        "prompt": "chain_arithmetic",
        "train_data": data,
        "eval_data": [{"data": data}, {"name": "Two-first", "task": "amc", "data": data,
                                       "num_examples": 2}],
        **changes,
    }  # fmt: skip
    return cls(**settings)


def trainer_of(method, data, tokenizer, folder):
    if method == "sft":
        traces = [
            {"prompt": f"Q: {p['problem']}\nA: <think>", "response": "2", "ground_truth": "2"}
            for p in PROBLEMS
        ]
        (folder / "traces.jsonl").write_text("".join(json.dumps(t) + "\n" for t in traces))
        sft = arguments(data, TraceArguments, train_data=str(folder / "traces.jsonl"))
        loaded = sft.load_traces(tokenizer, 64)
        args = R1ZeroSFTConfig(output_dir=str(folder), **COMMON)
        cls = R1ZeroSFTTrainer
    else:
        loaded = arguments(data).load()
        own = {"group_size": 4, "max_completion_length": 8, **COMMON}
        if method == "grpo":
            args = R1ZeroGRPOConfig(
                str(folder), n_grpo_steps=1, rollout_batch_size=8, log_rollouts_every=1, **own
            )
            cls = R1ZeroGRPOTrainer
        else:
            args = ExpertIterationConfig(str(folder), n_ei_steps=1, ei_batch_size=2, **own)
            cls = ExpertIterationTrainer
    reward = "reward_funcs" if method == "grpo" else "reward_fn"
    return cls(
        model=make_tiny_model(tokenizer),
        args=args,
        train_dataset=loaded.train_dataset,
        eval_dataset=loaded.eval_dataset,
        processing_class=tokenizer,
        stop=loaded.prompt.stop,
        **{reward: odd_digits_of_lists},
    )


@pytest.mark.parametrize("method", ["grpo", "sft", "expert_iteration"])
def test_a_run_with_several_sets(method, data, tokenizer, tmp_path):
    trainer = trainer_of(method, data, tokenizer, tmp_path)
    trainer.train()
    lines = [line for line in read_metrics(tmp_path) if "eval_accuracy" in line]
    assert len(lines) == 2
    for line in lines:
        # The first is the main one, whose metrics have the names of a single set, too.
        for name in ("accuracy", "accuracy_stderr", "num_examples", "length", "seconds"):
            assert line[f"eval_{name}"] == line[f"validation/math/{name}"]
        assert line["validation/math/num_examples"] == 5
        assert line["validation/Two-first/num_examples"] == 2
    main, other = tmp_path / "evaluations", tmp_path / "evaluations" / "Two-first"
    key = f"{trainer.step_key}_00001.jsonl"
    rows = [[json.loads(x) for x in (f / key).read_text().splitlines()] for f in (main, other)]
    assert [len(of_set) for of_set in rows] == [5, 2]
    assert rows[0][1]["ground_truth"] == ["2", "2.0"]
    best = json.loads((tmp_path / "best" / "best.json").read_text())
    assert best["chosen_by"] == "math"
    assert best["eval_accuracy"] == lines[1]["eval_accuracy"]
    assert best["validation/Two-first/accuracy"] == lines[1]["validation/Two-first/accuracy"]
    report = write_report(tmp_path)
    assert "accuracy, math" in report and "accuracy, Two-first" in report
    # Sets of another call.
    found = trainer.evaluate({"a": trainer.eval_dataset})
    assert found["validation/a/accuracy"] == found["eval_accuracy"]


def test_the_main_set_is_sampled_as_it_is_alone(data, tokenizer, tmp_path):
    several = trainer_of("grpo", data, tokenizer, tmp_path / "several")
    alone = R1ZeroGRPOTrainer(
        model=make_tiny_model(tokenizer),
        reward_funcs=odd_digits,
        args=R1ZeroGRPOConfig(
            str(tmp_path / "alone"), n_grpo_steps=1, rollout_batch_size=8, group_size=4,
            max_completion_length=8, **COMMON,
        ),
        train_dataset=several.train_dataset,
        eval_dataset=several.eval_dataset,
        processing_class=tokenizer,
        stop=["</answer>"],
    )  # fmt: skip
    found = several.evaluate(), alone.evaluate()
    assert not [name for name in found[1] if "validation" in name]
    assert {n: x for n, x in found[0].items() if n in found[1] and "seconds" not in n} == {
        n: x for n, x in found[1].items() if "seconds" not in n
    }


def test_sets_that_are_no_sets(data, tokenizer, tmp_path):
    trainer = trainer_of("grpo", data, tokenizer, tmp_path)
    columns = trainer.eval_dataset.remove_columns("ground_truth")
    for sets, message in (
        ({}, "eval_dataset is an empty mapping"),
        ({"a": columns}, r"eval_dataset lacks the columns \['ground_truth'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.evaluate(sets)
    with pytest.raises(ValueError, match=r"eval_dataset\['a'\] lacks the columns"):
        R1ZeroGRPOTrainer(
            model=trainer.model,
            reward_funcs=odd_digits,
            args=trainer.args,
            train_dataset=trainer.train_dataset,
            eval_dataset={"a": columns},
        )


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "eval_data: got an empty list"),
        (["math", "math"], r"eval_data\[1\]: 'math' is there twice"),
        ([{"n": 4}], r"eval_data\[0\]: unknown setting 'n'.* Allowed: data, name, num_examples"),
        (["countdown"], "eval_data countdown: the answers to the task 'countdown' are graded oth"),
        (["amie"], "unknown task 'amie'; did you mean 'aime'"),
    ],
)
def test_lists_that_are_not_right(data, sets, message):
    with pytest.raises(ValueError, match=message):
        arguments(data, eval_data=sets)


def test_sets_of_a_generating_task(data):
    chains = {"task": "chain_arithmetic", "task_args": {"num_validation": 3}}
    sets = arguments(data, eval_data=["chain_arithmetic", {"name": "few", **chains}])
    loaded = sets.load_validation(*sets.load_task())
    assert {name: len(rows) for name, rows in loaded.items()} == {
        "chain_arithmetic": 512,
        "few": 3,
    }
