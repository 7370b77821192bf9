"""Win rates by arithmetic that can be checked by eye, and against fits made in another way."""

import math

import numpy as np
import pytest
import torch

from trl_r1zero.evaluation.win_rate import RIDGE, length_controlled_win_rate, win_rate


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


# The plain win rate


def test_mean_and_standard_error():
    estimate = win_rate([1, 1, 0, 0.5])
    assert estimate.value == 0.625
    # Deviations 0.375, 0.375, -0.625, -0.125: squares sum to 0.6875; over 4 * 3.
    assert estimate.stderr == pytest.approx(math.sqrt(0.6875 / 12))


def test_preferences_of_one_instruction_count_as_one():
    assert win_rate([1, 0, 1, 1], ["a", "a", "b", "b"]) == win_rate([0.5, 1])
    assert win_rate([1, 0, 1, 1], ["a", "a", "b", "b"]).stderr == pytest.approx(0.25)


def test_the_error_of_one_is_not_known():
    assert math.isnan(win_rate([1.0]).stderr)
    estimate = length_controlled_win_rate([1.0], [3])
    assert math.isnan(estimate.stderr) and 0.5 < estimate.value < 1


# Length control


def test_symmetric_data_is_a_half():
    """For each win of some length there is a loss of the opposite length."""
    d = np.array([100, 50, 20, -10])
    y = np.array([1, 1, 0, 0.5])
    estimate = length_controlled_win_rate([*y, *(1 - y)], [*d, *-d])
    assert estimate.value == pytest.approx(0.5, abs=1e-9)


def test_equal_lengths_give_the_plain_win_rate():
    y = [1, 1, 0, 0.5] * 50
    for difference in (0, 17):
        estimate, plain = length_controlled_win_rate(y, [difference] * 200), win_rate(y)
        assert estimate.value == pytest.approx(plain.value, abs=1e-4)
        assert estimate.stderr == pytest.approx(plain.stderr, rel=1e-3)


def test_two_lengths_by_hand():
    """With two lengths the model fits both means exactly: 0.8 of the longer, 0.2 of the shorter."""
    y = ([1] * 800 + [0] * 200) + ([1] * 200 + [0] * 800)
    d = [300] * 1000 + [-100] * 1000
    x = np.tanh(np.array([300, -100]) / np.std(d, ddof=1))
    slope = 2 * math.log(4) / (x[0] - x[1])  # logits log 4 and -log 4
    expected = sigmoid(math.log(4) - slope * x[0])
    assert length_controlled_win_rate(y, d).value == pytest.approx(expected, abs=1e-4)
    assert win_rate(y).value == 0.5
    assert expected < 0.45  # at equal lengths it would lose: it is longer by more than shorter


def test_a_judge_that_only_prefers_the_longer():
    rng = np.random.default_rng(0)
    d = rng.normal(300, 200, 805)
    y = (d > 0).astype(float)  # length tells wins from losses without fail
    plain, controlled = win_rate(y), length_controlled_win_rate(y, d)
    assert plain.value > 0.9
    assert controlled.value == pytest.approx(0.5, abs=2.5 * controlled.stderr)
    assert controlled.stderr < 0.15


def test_a_judge_that_does_not_look_at_length():
    rng = np.random.default_rng(0)
    y, d = (rng.random(4000) < 0.7).astype(float), rng.normal(300, 200, 4000)
    controlled = length_controlled_win_rate(y, d)
    assert controlled.value == pytest.approx(0.7, abs=0.04)
    # Lengths far from 0 say little about equal lengths, and the error knows it.
    assert controlled.stderr > 2 * win_rate(y).stderr


@pytest.mark.parametrize("wins", [0.0, 1.0])
def test_all_won_or_lost_is_finite(wins):
    for d in ([5] * 30, list(range(30)), list(range(-15, 15))):
        estimate = length_controlled_win_rate([wins] * 30, d)
        assert abs(estimate.value - wins) < 0.1
        assert 0 <= estimate.stderr < 0.1


def test_the_fit_agrees_with_another_optimiser():
    rng = np.random.default_rng(1)
    for size in (6, 60, 600):
        d = rng.normal(50, 100, size).round()
        y = rng.choice([0, 0.25, 0.5, 0.75, 1], size)
        x = torch.tensor(np.tanh(d / d.std(ddof=1)))
        target = torch.tensor(y)
        beta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [beta], max_iter=500, tolerance_grad=1e-10, tolerance_change=0
        )

        def loss(beta=beta, x=x, target=target, optimizer=optimizer):
            optimizer.zero_grad()
            value = torch.nn.functional.binary_cross_entropy_with_logits(
                beta[0] + beta[1] * x, target, reduction="sum"
            )
            value = value + RIDGE / 2 * beta.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        expected = sigmoid(beta[0].item())
        assert length_controlled_win_rate(y, d).value == pytest.approx(expected, abs=1e-6)


def test_the_standard_error_is_that_of_repetition():
    """Drawn again and again, the estimates scatter as the error says."""
    rng = np.random.default_rng(2)
    estimates = []
    for _ in range(400):
        d = rng.normal(80, 100, 300)
        p = 1 / (1 + np.exp(-(0.4 + 1.5 * np.tanh(d / 100))))
        # Soft labels: each the mean of two verdicts that are not independent.
        first = rng.random(300) < p
        second = np.where(rng.random(300) < 0.5, first, rng.random(300) < p)
        estimates.append(length_controlled_win_rate((first + 1.0 * second) / 2, d))
    values = np.array([estimate.value for estimate in estimates])
    assert values.mean() == pytest.approx(sigmoid(0.4), abs=0.01)
    stderr = np.mean([estimate.stderr for estimate in estimates])
    assert stderr == pytest.approx(values.std(ddof=1), rel=0.12)


def test_groups_are_the_unit_of_the_error():
    """The same preference twice is no more information."""
    rng = np.random.default_rng(3)
    y, d = rng.choice([0, 0.5, 1], 200), rng.normal(20, 100, 200)
    once = length_controlled_win_rate(y, d)
    twice = length_controlled_win_rate([*y, *y], [*d, *d], [*range(200), *range(200)])
    assert twice.value == pytest.approx(once.value, abs=2e-3)
    assert twice.stderr == pytest.approx(once.stderr, rel=0.01)
    assert length_controlled_win_rate([*y, *y], [*d, *d]).stderr < 0.75 * once.stderr


@pytest.mark.parametrize(
    ("preferences", "differences", "message"),
    [
        ([1, 0], [3], "got 2 preferences and 1 length differences"),
        ([], [], "at least one"),
        ([1.5], [3], r"preferences must be in \[0, 1\]"),
        ([math.nan], [3], r"preferences must be in \[0, 1\]"),
        ([1], [math.inf], "length differences finite"),
    ],
)
def test_what_is_refused(preferences, differences, message):
    with pytest.raises(ValueError, match=message):
        length_controlled_win_rate(preferences, differences)
