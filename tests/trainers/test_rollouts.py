"""A rollout batch, its train batches, and tensors of its rows: every number at its place."""

import math

import pytest
import torch

from trl_r1zero.generation import Completion
from trl_r1zero.trainers.rollouts import (
    Rollout,
    RolloutBatch,
    make_microbatch,
    num_trained_tokens,
    store_log_probs,
    untrained,
)

PAD = 99


def rollout(name: str, prompt_ids: list[int], token_ids: list[int], **settings) -> Rollout:
    return Rollout(
        prompt=name,
        ground_truth="",
        prompt_ids=prompt_ids,
        completion=Completion(token_ids, "", "stop"),
        **{"rewards": {"reward": 1.0}, "advantage": 0.5, **settings},
    )


def group_rows(groups, group_size: int) -> list[Rollout]:
    return [rollout(f"{g}.{i}", [g], [i]) for g in groups for i in range(group_size)]


def names(rollouts) -> list[str]:
    return [row.prompt for row in rollouts]


# Train batches


@pytest.mark.parametrize("num_train_batches", [1, 2, 4])
def test_train_batches_cover_every_row_once_and_keep_groups_whole(num_train_batches):
    batch = RolloutBatch(group_rows(range(8), 3), group_size=3)
    parts = [batch.train_batch(index, num_train_batches) for index in range(num_train_batches)]
    assert sorted(names(row for part in parts for row in part)) == sorted(names(batch.rollouts))
    for part in parts:
        assert len(part) == 24 // num_train_batches
        groups = [name.split(".")[0] for name in names(part)]
        assert all(groups.count(group) == 3 for group in groups)


def test_groups_are_dealt_out_like_cards():
    batch = RolloutBatch(group_rows(range(4), 2), group_size=2)
    assert names(batch.train_batch(0, 2)) == ["0.0", "0.1", "2.0", "2.1"]
    assert names(batch.train_batch(1, 2)) == ["1.0", "1.1", "3.0", "3.1"]


def test_a_share_of_train_batches_that_cuts_a_group_still_covers_every_row():
    # Three groups for two train batches: the middle one is cut.
    batch = RolloutBatch(group_rows(range(3), 2), group_size=2)
    parts = [batch.train_batch(index, 2) for index in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    assert sorted(names(parts[0] + parts[1])) == sorted(names(batch.rollouts))


# Micro-batches


def make(rollouts):
    return make_microbatch(
        rollouts,
        pad_token_id=PAD,
        device=torch.device("cpu"),
        num_sequences=6.0,
        num_tokens=num_trained_tokens(rollouts),
    )


ROWS = [
    rollout("short", [1], [2]),
    rollout("longest", [3, 4], [5, 6, 7], rewards={"reward": 0.0}, advantage=-2.0),
    rollout("empty", [8, 9], []),
    rollout("long", [10, 11, 12], [13]),
]


def test_a_micro_batch_is_as_wide_as_its_longest_row():
    batch = make([ROWS[1], ROWS[3]])
    assert names(batch.rollouts) == ["longest", "long"]
    assert batch.input_ids.tolist() == [[3, 4, 5, 6], [10, 11, 12, 13]]
    assert batch.labels.tolist() == [[4, 5, 6, 7], [11, 12, 13, PAD]]
    assert batch.response_mask.tolist() == [[False, True, True, True], [False, False, True, False]]
    assert batch.lengths == [4, 3]
    # Two tokens at most: one column.
    batch = make([ROWS[0], ROWS[2]])
    assert batch.input_ids.tolist() == [[1], [8]]
    assert batch.labels.tolist() == [[2], [9]]
    assert batch.response_mask.tolist() == [[True], [False]]
    assert batch.lengths == [1, 1]


def test_a_micro_batch_carries_the_numbers_of_its_rows():
    batch = make([ROWS[1], ROWS[3]])
    assert batch.advantages.tolist() == [[-2.0], [0.5]]
    assert batch.old_log_probs is None
    assert batch.ref_log_probs is None
    assert (batch.num_sequences, batch.num_tokens) == (6.0, 4)


def test_a_row_out_of_the_loss_is_masked():
    batch = make([ROWS[1], untrained(ROWS[1])])
    assert batch.response_mask.tolist() == [[False, True, True, True], [False] * 4]
    assert batch.num_tokens == 3
    assert ROWS[1].trained


def test_rows_keep_the_log_probs_of_their_completions():
    rows = [rollout("a", [1], [2, 3]), rollout("b", [4, 5, 6], [7])]
    batch = make(rows)
    # labels: 2 3 - | 5 6 7
    store_log_probs(batch, torch.tensor([[-1.0, -2.0, 9.0], [9.0, 9.0, -3.0]]), "old_log_probs")
    assert rows[0].old_log_probs.tolist() == [-1.0, -2.0]
    assert rows[1].old_log_probs.tolist() == [-3.0]
    assert torch.equal(make(rows).old_log_probs, torch.tensor([[-1.0, -2, 0], [0, 0, -3.0]]))


def test_whose_gradient_can_differ_from_0():
    assert rollout("a", [1], [2], advantage=-0.5).has_gradient
    assert not rollout("a", [1], [2], advantage=0.0).has_gradient
    assert not rollout("a", [1], [2], trained=False).has_gradient


def test_log_probs_stand_at_their_tokens():
    rows = [
        rollout("a", [1], [2, 3], old_log_probs=torch.tensor([-0.1, -0.2])),
        rollout("b", [4, 5, 6], [7], old_log_probs=torch.tensor([-0.3])),
        rollout("c", [8], [], old_log_probs=torch.tensor([])),
    ]
    batch = make(rows)
    # labels: 2 3 - | 5 6 7 | - - -
    expected = torch.tensor([[-0.1, -0.2, 0.0], [0.0, 0.0, -0.3], [0.0, 0.0, 0.0]])
    assert torch.equal(batch.old_log_probs, expected)
    assert batch.ref_log_probs is None


def test_the_samplers_log_probs_stand_at_their_tokens():
    rows = [
        rollout("a", [1], [2, 3]),
        rollout("b", [4, 5, 6], [7]),
        rollout("c", [8], []),
    ]
    batch = make(rows)
    assert batch.sampler_log_probs is None
    for row, log_probs in zip(rows, ([-0.1, -0.2], [math.nan], []), strict=True):
        row.completion.log_probs = log_probs
    batch = make(rows)
    # labels: 2 3 - | 5 6 7 | - - -
    expected = torch.tensor([[-0.1, -0.2, 0.0], [0.0, 0.0, math.nan], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        batch.sampler_log_probs, expected, atol=0.0, rtol=0.0, equal_nan=True
    )


def test_log_probs_of_some_rows_only_are_an_error():
    rows = [
        rollout("a", [1], [2], ref_log_probs=torch.tensor([-0.1])),
        rollout("b", [3], [4]),
    ]
    with pytest.raises(ValueError, match="some rows of a micro-batch have these log-prob"):
        make(rows)


def test_an_untrained_row_is_masked_and_not_counted():
    rows = [
        rollout("kept", [1], [2, 3], old_log_probs=torch.tensor([-0.1, -0.2])),
        rollout("out", [4], [5, 6], trained=False, old_log_probs=torch.tensor([-0.3, -0.4])),
    ]
    batch = make(rows)
    assert batch.response_mask.tolist() == [[True, True], [False, False]]
    assert batch.num_tokens == num_trained_tokens(rows) == 2
    torch.testing.assert_close(batch.old_log_probs, torch.tensor([[-0.1, -0.2], [-0.3, -0.4]]))


def test_lengths():
    row = rollout("a", [1, 2], [3, 4, 5])
    assert (row.length, row.num_tokens) == (3, 5)
