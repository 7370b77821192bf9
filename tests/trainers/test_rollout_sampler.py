"""The order of the prompts: groups, repeats for further updates, passes over the data."""

from collections import Counter

import pytest

from trl_r1zero.trainers.rollout_sampler import RolloutSampler


def sampler(num_prompts=6, **settings) -> RolloutSampler:
    return RolloutSampler(
        range(num_prompts),
        **{
            "prompts_per_rollout_batch": 2,
            "group_size": 3,
            "updates_per_grpo_step": 1,
            "n_grpo_steps": 4,
            "shuffle": False,
            "seed": 0,
            **settings,
        },
    )


def test_each_prompt_stands_group_size_times_in_a_row():
    assert list(sampler(n_grpo_steps=2)) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_rollout_batch_is_yielded_once_for_each_update():
    rows = list(sampler(n_grpo_steps=2, group_size=2, updates_per_grpo_step=3))
    assert rows == [0, 0, 1, 1] * 3 + [2, 2, 3, 3] * 3


def test_a_batch_may_span_two_passes():
    # 5 prompts, 2 at a time: 0 1 | 2 3 | 4 0 | 1 2; none is dropped at the end of a pass.
    rows = list(sampler(num_prompts=5, group_size=1))
    assert rows == [0, 1, 2, 3, 4, 0, 1, 2]


@pytest.mark.parametrize("updates", [1, 4])
def test_length(updates):
    long = sampler(num_prompts=5, updates_per_grpo_step=updates)
    assert len(list(long)) == len(long) == 4 * updates * 2 * 3


def test_a_shuffled_pass_has_every_prompt_once_and_the_next_another_order():
    rows = list(sampler(num_prompts=20, group_size=1, n_grpo_steps=20, shuffle=True))
    first, second = rows[:20], rows[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != list(range(20))
    assert first != second


def test_the_order_depends_on_the_seed_alone():
    shuffled = {"num_prompts": 20, "shuffle": True}
    assert list(sampler(**shuffled)) == list(sampler(**shuffled))
    assert list(sampler(**shuffled)) != list(sampler(**shuffled, seed=1))
    # A longer run begins as a shorter one.
    assert list(sampler(**shuffled, n_grpo_steps=9))[:24] == list(sampler(**shuffled))
    # Iterating again starts over, as after a resume.
    again = sampler(**shuffled)
    assert list(again) == list(again)


def test_the_prompts_do_not_depend_on_the_shape_of_the_updates():
    one = list(sampler(num_prompts=20, shuffle=True))
    four = list(sampler(num_prompts=20, shuffle=True, updates_per_grpo_step=4))
    assert [row for start in range(0, len(four), 24) for row in four[start : start + 6]] == one


def test_every_prompt_of_a_batch_is_different():
    with pytest.raises(ValueError, match="has 3 prompts, but a rollout batch needs 4 different"):
        sampler(num_prompts=3, prompts_per_rollout_batch=4)
    rows = Counter(sampler(num_prompts=4, prompts_per_rollout_batch=4, n_grpo_steps=1))
    assert rows == {0: 3, 1: 3, 2: 3, 3: 3}
