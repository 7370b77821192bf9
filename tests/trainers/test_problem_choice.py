"""Which problems come next, worked by hand: the usual order, bands, replay."""

import json
from collections import Counter

import pytest

from trl_r1zero.trainers.problem_choice import (
    ProblemChoice,
    band_of,
    chosen_groups,
    new_rate,
    pick,
)
from trl_r1zero.trainers.problem_settings import Curriculum, ProblemSettings, Replay
from trl_r1zero.trainers.rollout_sampler import RolloutSampler


def make(rates, curriculum=None, replay=None, *, seed=3, shuffle=True) -> ProblemChoice:
    return ProblemChoice(seed, shuffle, curriculum, replay, list(rates))


def band_counts(choice, problems) -> list[int]:
    bands = [band_of(choice.rates[problem], choice.curriculum.bands) for problem in problems]
    return [bands.count(band) for band in range(len(choice.curriculum.weights))]


def test_the_running_rate_by_hand():
    assert new_rate(0.5, 1.0, 0.5) == 0.75
    assert new_rate(0.75, 0.0, 0.5) == 0.375
    assert new_rate(0.2, 0.9, 1.0) == 0.9


def test_a_band_begins_at_its_bound():
    bands = [0.25, 0.75]
    rates = [0.0, 0.2499, 0.25, 0.5, 0.75, 1.0]
    assert [band_of(rate, bands) for rate in rates] == [0, 0, 1, 1, 2, 2]


def test_a_band_is_picked_as_often_as_its_weight_says():
    picked = Counter(pick(number / 1000, [1.0, 3.0]) for number in range(1000))
    assert picked == {0: 250, 1: 750}
    assert pick(1 - 2**-53, [0.1, 0.7, 0.2]) == 2


def test_informative_groups_come_first_and_all_in_the_order_of_sampling():
    good = [False, True, False, True, True, True]
    assert chosen_groups(good, 3) == [1, 3, 4]
    assert chosen_groups(good, 4) == [1, 3, 4, 5]
    assert chosen_groups(good, 5) == [0, 1, 3, 4, 5]
    assert chosen_groups([False] * 4, 2) == [0, 1]


@pytest.mark.parametrize("shuffle", [True, False])
def test_without_a_curriculum_the_order_is_the_usual_one(shuffle):
    usual = RolloutSampler(
        range(12),
        prompts_per_rollout_batch=4,
        group_size=2,
        updates_per_grpo_step=1,
        n_grpo_steps=9,
        shuffle=shuffle,
        seed=3,
    )
    choice = make([0.0] * 12, shuffle=shuffle)
    drawn = [choice.draw(step, 4, set()) for step in range(9)]
    assert drawn == [usual.prompts_of(step) for step in range(9)]


def test_no_problem_comes_twice_in_a_step():
    choice = make([0.0] * 6)
    first = choice.draw(0, 4, set())
    second = choice.draw(0, 4, set(first))
    assert sorted(first + second) == list(range(6))
    assert choice.draw(0, 4, {*first, *second}) == []


def test_bands_are_drawn_from_by_their_weights():
    rates = [0.1] * 400 + [0.5] * 400 + [0.9] * 400
    choice = make(rates, Curriculum(weights=(1.0, 2.0, 1.0)))
    counts = band_counts(choice, choice.draw(0, 400, set()))
    assert sum(counts) == 400
    for count, expected in zip(counts, (100, 200, 100), strict=True):
        assert abs(count - expected) < 4 * 10  # a binomial's deviation is at most 10


def test_a_band_of_weight_0_waits_until_the_others_are_empty():
    choice = make([0.5] * 5 + [1.0] * 5, Curriculum(weights=(1.0, 1.0, 0.0)))
    drawn = choice.draw(0, 7, set())
    assert sorted(drawn[:5]) == [0, 1, 2, 3, 4]
    assert min(drawn[5:]) >= 5


def test_within_a_band_the_least_drawn_come_first():
    choice = make([0.5] * 6, Curriculum(bands=(0.25,), weights=(1.0, 1.0)))
    first = choice.draw(0, 4, set())
    second = choice.draw(1, 4, set())
    assert not {*second[:2]} & {*first}
    assert choice.draws == [2 if problem in second[2:] else 1 for problem in range(6)]


def test_rates_move_a_problem_to_another_band():
    choice = make([0.5, 0.5], Curriculum(newest_weight=0.5))
    metrics = choice.learn([0, 1], [1.0, 0.25])
    assert choice.rates == [0.75, 0.375]
    assert metrics == {  # of the bands that they were drawn from
        "problems/band_0": 0,
        "problems/band_1": 2,
        "problems/band_2": 0,
        "problems/mean_pass_rate": 0.5625,
    }
    assert band_counts(choice, [0, 1]) == [0, 1, 1]


def test_unsolved_problems_are_replayed_longest_ago_first_until_they_are_solved_or_given_up():
    choice = make([0.0] * 5, replay=Replay(share=0.5, max_replays=2))
    metrics = choice.learn([3, 1, 4, 0], [0.0, 0.0, 0.5, 0.0])
    assert metrics == {"problems/replayed_groups": 0, "problems/unsolved": 3}
    assert choice.replays(5) == [3, 1]
    choice.learn([3, 1], [0.0, 0.25], 2)  # a second failure, to the end of the line; one solved
    assert choice.replays(10) == [0, 3]
    assert choice.replays(3) == [0]
    choice.learn([3], [0.0], 1)  # the third: replayed twice, given up
    assert choice.replays(10) == [0]
    for_ever = make([0.0], replay=Replay(max_replays=None))
    for _ in range(9):
        for_ever.learn([0], [0.0])
    assert for_ever.replays(4) == [0]
    assert make([0.0]).replays(4) == []


def test_a_copy_changes_alone_and_a_state_goes_on_alike():
    choice = make([0.5] * 8, Curriculum(), Replay())
    choice.draw(0, 3, set())
    choice.learn([2], [0.0])
    state = choice.state()
    kept = json.loads(json.dumps(state))
    other = ProblemChoice(3, True, Curriculum(), Replay(), **kept)
    copied = choice.copied()
    assert copied.draw(1, 8, set()) == other.draw(1, 8, set())
    copied.learn([2], [1.0])
    assert choice.state() == state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "problem_sampling is empty; remove it, or name one of dynamic, filter"),
        ({"dynamic": None}, "is empty"),
        ({"dinamic": {}}, "unknown part of problem_sampling 'dinamic'; did you mean 'dynamic'"),
        ({"dynamic": True}, "problem_sampling.dynamic must be a mapping"),
        ({"dynamic": {"rounds": 3}}, "unknown setting of problem_sampling.dynamic 'rounds'"),
        ({"dynamic": {"max_rounds": 0}}, "problem_sampling.dynamic.max_rounds must be at least 1"),
        ({"dynamic": {"max_rounds": 2.5}}, "problem_sampling.dynamic.max_rounds must be int"),
        ({"dynamic": {"oversampling": 0.5}}, "oversampling must be at least 1"),
        ({"dynamic": {"metric": "acc"}}, "metric must be one of advantage, accuracy"),
        ({"filter": {"min_pass_rate": 0.6, "max_pass_rate": 0.5}}, "no problem would be left"),
        ({"filter": {"max_pass_rate": 1.5}}, "from 0 to 1"),
        ({"filter": {"min_pass_rate": float("nan")}}, "problem_sampling.filter.min_pass_rate"),
        ({"curriculum": {"bands": []}}, "bands must rise"),
        ({"curriculum": {"bands": [0.5, 0.5]}}, "bands must rise"),
        ({"curriculum": {"bands": [0.5]}}, "one number for each of the 2 bands"),
        ({"curriculum": {"weights": [0, 0, 0]}}, "not all 0; got"),
        ({"curriculum": {"weights": [1, -1, 1]}}, "and at least 0"),
        ({"curriculum": {"newest_weight": 0}}, "above 0 and at most 1"),
        ({"replay": {"share": 0}}, "above 0 and at most 1"),
        ({"replay": {"max_replays": 0}}, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        ProblemSettings.from_settings(settings)


def test_settings_of_yaml_and_of_python():
    made = ProblemSettings.from_settings(
        {"curriculum": {"bands": [0.5], "weights": [1, 2]}, "replay": None, "dynamic": {}}
    )
    assert made.curriculum == Curriculum(bands=(0.5,), weights=(1.0, 2.0))
    assert (made.replay, made.filter, made.dynamic.max_rounds) == (None, None, 10)
    python = {"curriculum": {"bands": (0.5,), "weights": (1, 2)}, "dynamic": {}}
    assert ProblemSettings.from_settings(python) == made
