"""What trainers are made of, without one: forward passes, sampler, validator, rollouts ahead."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from launch_rewards import odd_digits
from tiny_grpo import TASK
from tiny_models import make_tiny_model

from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.generation import Completion, SamplingConfig, row_seeds
from trl_r1zero.generation.vllm_server import VLLMServerError
from trl_r1zero.grading import Grader
from trl_r1zero.trainers.microbatches import MicroBatchLimits, PaddedRows
from trl_r1zero.trainers.policy_forward import PolicyForward
from trl_r1zero.trainers.rewards import grade_with
from trl_r1zero.trainers.rollouts_ahead import RolloutsAhead
from trl_r1zero.trainers.sampling import PolicySampler
from trl_r1zero.trainers.server_setup import ServerRequest
from trl_r1zero.trainers.timing import ServerClock, StepTimer
from trl_r1zero.trainers.validation import Validator

SAMPLING = SamplingConfig(max_tokens=8)
PROMPTS = list(TASK.eval_dataset["prompt"])


def make_policy(tokenizer, **settings) -> PolicyForward:
    model = make_tiny_model(tokenizer)
    args = SimpleNamespace(
        **{
            "pack_rows": False,
            "share_prefixes": False,
            "fused_lm_head": False,
            "max_tokens_per_microbatch": None,
            "disable_tqdm": True,
            "ds3_gather_for_generation": True,
            "gradient_checkpointing_kwargs": None,
            "completion_entropies": True,
            "vllm_check_syncs": 1,
            "vllm_server_base_url": "http://server",
            "bf16": False,
            "fp16": False,
            **settings,
        }
    )
    return PolicyForward(
        Accelerator(cpu=True),
        args,
        model=lambda: model,
        reference=lambda: None,
        rows_per_microbatch=2,
        longest_row=lambda: 100,
    )


class Server:
    """Does what a server is asked for, and writes it down."""

    def __init__(self, sleep_level: int = 0) -> None:
        self.sleep_level, self.keeps_running = sleep_level, False
        self.asked: list[str] = []
        self.clock, self.num_updates = ServerClock(), lambda: 0
        self._begun: list[ServerRequest] = []

    def release(self) -> None:
        self.asked.append("release")

    def sync_weights(self) -> None:
        self.asked.append("weights")

    def check_probe(self, token_ids, log_probs, dtype) -> float:
        assert len(token_ids) == len(log_probs) + 1
        self.asked.append(f"probe in {dtype}")
        return 0.0

    def sample(self, prompt_ids, sampling, seeds, *, description, show_progress):
        self.asked.append(description)
        return [Completion([seed], "", "stop") for seed in seeds]

    def begin(self, request: ServerRequest) -> None:
        self.asked.append("begin")
        request.versions = [self.num_updates()] * len(request.seeds)
        self._begun.append(request)

    def settle(self) -> None:
        if not self.keeps_running:
            self.finish()

    def finish(self, request: ServerRequest | None = None) -> None:
        for one in [one for one in self._begun if request in (None, one)]:
            self._begun.remove(one)
            self.asked.append("finish")
            one.completions = [Completion([seed], "", "stop") for seed in one.seeds]


def make_sampler(tokenizer, server=None, *, updates=lambda: 0, **settings) -> PolicySampler:
    policy = make_policy(tokenizer, **settings)
    return PolicySampler(
        policy, tokenizer, policy.model, updates, lambda: PROMPTS[0], server=server
    )


# Forward passes


def test_log_probs_are_those_of_the_response(tokenizer):
    policy = make_policy(tokenizer)
    ids = torch.randint(0, 250, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]).bool()
    rows = PaddedRows(ids[:, :-1], ids[:, 1:], mask, lengths=[6, 6])
    expected = get_response_log_probs(policy.model(), rows.input_ids, rows.labels)["log_probs"]
    for policy.args.pack_rows in (False, True):
        given = policy.log_probs(policy.model(), rows, temperature=1.0)["log_probs"]
        torch.testing.assert_close(given[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_limits_follow_from_settings(tokenizer):
    policy = make_policy(tokenizer)
    assert policy.memory is None  # on a CPU
    assert policy.limits == MicroBatchLimits(2)
    assert policy.forward_limits == MicroBatchLimits(8)
    policy.args.max_tokens_per_microbatch = 50
    policy.width = len
    assert policy.limits == MicroBatchLimits(2, 50, width=len)


def test_each_row_is_of_one_process(tokenizer):
    policy = make_policy(tokenizer)
    shares = []
    for policy.rank, policy.processes in ((0, 2), (1, 2)):
        shares += policy.own_rows(range(5))
    assert sorted(shares) == list(range(5))


# Sampling


def test_transformers_samples_what_seeds_say(tokenizer):
    sampler = make_sampler(tokenizer)
    prompt_ids, completions = sampler.sample(PROMPTS[:3], SAMPLING, [1, 2, 3], "")
    assert prompt_ids == tokenizer(PROMPTS[:3])["input_ids"]
    again = sampler.sample(PROMPTS[1:3], SAMPLING, [2, 3], "")[1]
    assert [c.token_ids for c in again] == [c.token_ids for c in completions[1:]]
    assert sampler.longest(PROMPTS) == max(map(len, tokenizer(PROMPTS)["input_ids"]))
    assert sampler.timed_parts == []
    with pytest.raises(ValueError, match="there is no server to check"):
        sampler.check_server()


def test_graded_completions_come_in_the_order_of_their_examples(tokenizer):
    sampler = make_sampler(tokenizer)
    examples = [example for example in TASK.eval_dataset.to_list()[:2] for _ in range(2)]
    sample = sampler.sample_and_grade(
        examples,
        SAMPLING,
        row_seeds(0, "rollout", 0, range(4)),
        grade_with(Grader(odd_digits)),
        completions_per_example=2,
        num_with_tokens=1,
        description="",
    )
    assert [one.log_probs is None for one in sample.completions] == [False, True, True, True]
    assert [(row.example, row.completion) for row in sample.rows] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    for row, example, one in zip(sample.rows, examples, sample.completions, strict=True):
        assert row.prompt == example["prompt"]
        assert row.rewards == odd_digits(row.response, example["ground_truth"])
        assert row.response == tokenizer.decode(one.token_ids, skip_special_tokens=True).rstrip(
            "\ufffd"
        )
    assert sample.metrics == {}


def test_a_server_gets_the_weights_once_for_each_update(tokenizer):
    server, updates = Server(sleep_level=2), [0]
    sampler = make_sampler(tokenizer, server, updates=lambda: updates[0])
    for description in ("first", "second"):
        sampler.sample(PROMPTS[:2], SAMPLING, [1, 2], description)
    # The probe, for the first weights only, is made while the server sleeps.
    assert server.asked == ["release", "weights", "probe in float32", "first", "second"]
    updates[0] += 1
    sampler.sample(PROMPTS[:2], SAMPLING, [1, 2], "third")
    assert server.asked[5:] == ["weights", "third"]
    assert sampler.timed_parts == ["weight_sync", "server_sleep", "server_wake"]
    sampler.policy.make_room()
    assert server.asked[-1] == "release"


# Validation


def test_validation_writes_a_table_and_is_the_same_each_time(tokenizer, tmp_path):
    validator = Validator(
        make_sampler(tokenizer),
        SAMPLING,
        grade_with(Grader(odd_digits)),
        seed=0,
        num_examples=5,
        folder=tmp_path,
        step_key="grpo_step",
        step_name="GRPO step",
    )
    results = validator.run(TASK.eval_dataset, steps_done=3)
    rows = [json.loads(line) for line in (tmp_path / "grpo_step_00003.jsonl").open()]
    assert [row["prompt"] for row in rows] == PROMPTS[:5]
    assert results["num_examples"] == 5
    assert results["reward"] == pytest.approx(sum(row["reward"] for row in rows) / 5)
    again = validator.run(TASK.eval_dataset, steps_done=4)
    del results["seconds"], again["seconds"]
    assert again == results
    with pytest.raises(ValueError, match="there is nothing to validate on"):
        validator.run(None, 0)


# Rollouts ahead of time


def make_ahead(
    tokenizer, server, num_steps=3, max_staleness=1, updates=lambda: 0, updates_per_step=1
) -> RolloutsAhead:
    return RolloutsAhead(
        make_sampler(tokenizer, server, updates=updates, vllm_check_syncs=0),
        SAMPLING,
        lambda step: (PROMPTS[:2], [10 * step, 10 * step + 1]),
        num_steps,
        max_staleness,
        updates_per_step,
        StepTimer(torch.device("cpu")),
    )


def test_the_next_rollouts_are_begun_before_they_are_asked_for(tokenizer):
    server = Server()
    ahead = make_ahead(tokenizer, server)
    tokens = []
    for step in range(3):
        prompt_ids, completions = ahead.sample(
            step, PROMPTS[:2], [10 * step, 10 * step + 1], f"step {step}"
        )
        assert prompt_ids == tokenizer(PROMPTS[:2])["input_ids"]
        tokens += [completion.token_ids[0] for completion in completions]
    assert tokens == [0, 1, 10, 11, 20, 21]
    # No update in between here: the weights went once. Nothing is begun after the last step.
    assert server.asked == ["weights", "step 0", "begin", "finish", "begin", "finish"]
    assert "rollout_wait" in ahead.timer.collect()


def test_whoever_asks_the_server_meanwhile_waits_for_them(tokenizer):
    server = Server()
    ahead = make_ahead(tokenizer, server)
    ahead.sample(0, PROMPTS[:2], [0, 1], "step 0")
    ahead.sampler.sample(PROMPTS[:1], SAMPLING, [7], "Validation")
    assert server.asked[-3:] == ["begin", "finish", "Validation"]
    _, completions = ahead.sample(1, PROMPTS[:2], [10, 11], "step 1")
    assert [completion.token_ids for completion in completions] == [[10], [11]]
    assert server.asked[-2:] == ["Validation", "begin"]  # they were there


def test_rollouts_of_another_step_are_not_taken(tokenizer):
    server = Server()
    ahead = make_ahead(tokenizer, server)
    ahead.sample(0, PROMPTS[:2], [0, 1], "step 0")
    _, completions = ahead.sample(2, PROMPTS[:2], [20, 21], "step 2")
    assert [completion.token_ids for completion in completions] == [[20], [21]]


@pytest.mark.parametrize("max_staleness", [1, 2, 3])
def test_rows_are_as_many_steps_old_as_is_allowed(tokenizer, max_staleness):
    server, step, ages = Server(), 0, []
    ahead = make_ahead(tokenizer, server, 5, max_staleness, lambda: 2 * step, 2)
    for step in range(5):
        _, completions = ahead.sample(step, PROMPTS[:2], [10 * step, 10 * step + 1], "in place")
        assert [one.token_ids for one in completions] == [[10 * step], [10 * step + 1]]
        ages.append([one.staleness for one in completions])
    assert ages == [[min(step, max_staleness)] * 2 for step in range(5)]
    first = ["weights", "in place", *["begin"] * max_staleness]
    # With more than one batch ahead, the newest weights and the next batch come before the wait.
    second = ["weights", "begin", "finish"] if max_staleness > 1 else ["finish", "weights", "begin"]
    assert server.asked[: len(first) + 3] == first + second


def test_a_checkpoint_has_what_is_under_way(tokenizer, tmp_path):
    step = 0
    ahead = make_ahead(tokenizer, Server(), 6, 2, lambda: step)
    for step in range(3):
        ahead.sample(step, PROMPTS[:2], [10 * step, 10 * step + 1], "")
    step = 3  # after the update
    ahead.save(tmp_path)
    server = Server()
    resumed = make_ahead(tokenizer, server, 6, 2, lambda: step)
    resumed.load(tmp_path)
    for step in range(3, 6):
        went_on, resumed_rows = (
            one.sample(step, PROMPTS[:2], [10 * step, 10 * step + 1], "")
            for one in (ahead, resumed)
        )
        assert went_on == resumed_rows
        assert {row.staleness for row in resumed_rows[1]} == {2}
    assert "" not in server.asked  # nothing was sampled in place


def test_what_a_dead_server_owes_is_not_in_a_checkpoint(tokenizer, tmp_path):
    server = Server()
    ahead = make_ahead(tokenizer, server)
    ahead.sample(0, PROMPTS[:2], [0, 1], "")

    def die(request=None):
        server._begun.clear()
        raise VLLMServerError("it is gone")

    server.finish, works = die, server.finish
    ahead.save(tmp_path)
    server.finish = works
    for one in (ahead, make_ahead(tokenizer, server)):
        one.load(tmp_path)
        _, completions = one.sample(1, PROMPTS[:2], [10, 11], "in place")
        assert [completion.token_ids for completion in completions] == [[10], [11]]
        assert "in place" in server.asked
        server.asked.clear()
    make_ahead(tokenizer, server).load(tmp_path / "of a run without staleness")


def test_shares_of_a_servers_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = ServerClock()

    def later(seconds: float) -> None:
        now[0] += seconds

    later(2)  # idle
    with clock.request():
        later(1)
        with clock.request(), clock.waiting():
            later(3)
        assert clock.free_seconds() == 0
        later(1)
    later(3)
    assert clock.free_seconds() == 3
    assert clock.idle_shares() == {"trainer_idle_share": 0.3, "server_idle_share": 0.5}
    later(1)
    with clock.request():
        later(3)
        assert clock.idle_shares() == {"trainer_idle_share": 0.0, "server_idle_share": 0.25}
        later(1)
    assert clock.idle_shares() == {"trainer_idle_share": 0.0, "server_idle_share": 0.0}


def test_a_server_that_sleeps_samples_nothing_ahead(tokenizer):
    with pytest.raises(ValueError, match=r"the one at http://server sleeps then; start it without"):
        make_ahead(tokenizer, Server(sleep_level=2))
