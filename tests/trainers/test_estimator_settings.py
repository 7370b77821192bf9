"""Settings of the loss: what goes together, what does not, and what each stands for."""

import dataclasses
from functools import partial

import config_checks
import pytest

from trl_r1zero.functional import ADVANTAGES, AGGREGATIONS, SURROGATES
from trl_r1zero.trainers import R1ZeroGRPOConfig


@pytest.fixture
def config(tmp_path, monkeypatch):
    return partial(config_checks.make_config, R1ZeroGRPOConfig, tmp_path, monkeypatch)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_the_axes_are_independent(config, advantage, surrogate, aggregation):
    args = config(advantage=advantage, surrogate=surrogate, aggregation=aggregation)
    assert (args.loss.advantage, args.loss.surrogate) == (advantage, surrogate)
    assert args.advantage == advantage


def test_a_loss_type_gives_what_is_not_set(config):
    args = config(loss_type="grpo_clip", advantage="leave_one_out")
    assert (args.loss.advantage, args.loss.surrogate) == ("leave_one_out", "clipped_ratio")
    args = config(surrogate="gspo", use_std_normalization=False)
    assert (args.loss.advantage, args.loss.surrogate) == ("group_mean", "gspo")


def test_replace_keeps_what_was_set_and_derives_the_rest(config):
    args = dataclasses.replace(config(advantage="max_rl"), learning_rate=1e-3)
    assert args.loss.advantage == "max_rl"
    args = dataclasses.replace(config(), use_std_normalization=False)
    assert args.loss.advantage == args.advantage == "group_mean"
    args = dataclasses.replace(config(entropy_coef=0.1), entropy_coef=0.0)
    assert args.fused_lm_head is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"surrogate": "gspoo"}, "got 'gspoo'; did you mean 'gspo'. Or give a dotted path"),
        ({"advantage": "maxrl"}, "got 'maxrl'; did you mean 'max_rl'"),
        (
            {"surrogate": "gspo", "loss_type": "grpo_clip"},
            "loss_type grpo_clip has a surrogate, and surrogate is gspo; leave out one",
        ),
        (
            {"advantage": "max_rl", "use_std_normalization": True},
            "advantage is max_rl, and use_std_normalization True says another",
        ),
        (
            {"advantage": "max_rl", "loss_type": "no_baseline"},
            "advantage is max_rl, and loss_type no_baseline says another",
        ),
        ({"delta": 3.0}, "delta is used by grpo_clip only, and loss_type is reinforce_with"),
        ({"delta": 3.0, "surrogate": "gspo"}, "delta is used by grpo_clip only, and it is gspo"),
        ({"delta": 1.1, "loss_type": "grpo_clip"}, "above the upper bound of the clip, 1.2, got"),
        (
            {"cliprange_high": 0.3, "surrogate": "unclipped_ratio"},
            "cliprange_high is used by grpo_clip only",
        ),
        ({"kl_in": "reward"}, "kl_in has no effect without beta"),
        ({"kl_estimator": "k1"}, "kl_estimator has no effect without beta"),
        ({"kl_estimator": "k4", "beta": 0.1}, "kl_estimator must be one of k1, k2, k3"),
        ({"kl_in": "rewards", "beta": 0.1}, "kl_in must be one of loss, reward"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"entropy_coef": 0.1, "fused_lm_head": True}, "set fused_lm_head to false"),
        ({"entropy_coef": -0.1}, "entropy_coef must be at least 0"),
    ],
)
def test_what_does_not_go_together(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize("surrogate", ["clipped_ratio", "gspo", "gspo_token", "cispo"])
def test_every_surrogate_that_clips_takes_two_bounds(config, surrogate):
    args = config(surrogate=surrogate, cliprange=3e-4, cliprange_high=4e-4)
    assert args.clip_bounds == (3e-4, 4e-4)


def test_where_the_kl_penalty_is(config):
    assert not (config().kl_in_loss or config().kl_in_reward)
    assert config(beta=0.1).kl_in_loss
    args = config(beta=0.1, kl_in="reward")
    assert args.kl_in_reward and not args.kl_in_loss


def test_staleness_goes_with_every_ratio(config):
    settings = {"use_vllm": True, "max_staleness": 2, "old_log_probs": "sampler"}
    for surrogate in set(SURROGATES) - {"reinforce"}:
        assert config(surrogate=surrogate, **settings).max_staleness
    with pytest.raises(ValueError, match="or such a surrogate"):
        config(surrogate="reinforce", **settings)
