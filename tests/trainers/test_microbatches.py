"""How rows are dealt out and cut: every row once, within the limits, fairly over processes."""

import random
from dataclasses import dataclass, replace

import pytest

from trl_r1zero.trainers.epochs import PairRow
from trl_r1zero.trainers.microbatches import (
    MicroBatchLimits,
    cut_rows,
    padded_share,
    plan_microbatches,
    share_rows,
)


@dataclass(frozen=True)
class FakeRow:
    num_tokens: int
    number: int = 0
    in_loss: bool = True
    prompt_ids: tuple[int, ...] = ()


def rows(*lengths: int) -> list[FakeRow]:
    return [FakeRow(length, number) for number, length in enumerate(lengths)]


def lengths(parts) -> list:
    return [lengths(part) if isinstance(part, list) else part.num_tokens for part in parts]


def out(row: FakeRow) -> FakeRow:
    return replace(row, in_loss=False)


def test_rows_are_cut_longest_first():
    assert lengths(cut_rows(rows(3, 9, 5, 7, 1), MicroBatchLimits(rows=2))) == [[9, 7], [5, 3], [1]]


def test_the_budget_counts_padding():
    limits = MicroBatchLimits(rows=100, tokens=20)
    assert lengths(cut_rows(rows(10, 9, 5, 5, 5, 5, 2), limits)) == [[10, 9], [5, 5, 5, 5], [2]]


def test_the_padding_within_a_pair_counts_too():
    """Of 12 tokens and 2 x 8 positions: two such pairs are above a budget of 30."""
    pairs = [PairRow([1, 2], [3] * 6, [4] * 2) for _ in range(2)]
    assert (pairs[0].num_tokens, pairs[0].length) == (12, 8)
    limits = MicroBatchLimits(rows=9, tokens=30, width=lambda row: 2 * row.length)
    assert [len(part) for part in cut_rows(pairs, limits)] == [1, 1]
    assert padded_share([pairs], limits) == 1 - 24 / 32
    # One behind the other they have no padding.
    assert len(cut_rows(pairs, replace(limits, padded=False))) == 1


def test_without_padding_the_budget_counts_tokens():
    limits = MicroBatchLimits(rows=100, tokens=20, padded=False)
    assert lengths(cut_rows(rows(10, 9, 5, 5, 5, 5, 2), limits)) == [[10, 9], [5, 5, 5, 5], [2]]
    assert lengths(cut_rows(rows(12, 4, 4, 1), limits)) == [[12, 4, 4], [1]]


def test_a_row_above_the_budget_is_alone():
    assert lengths(cut_rows(rows(50, 3, 2), MicroBatchLimits(rows=9, tokens=6))) == [[50], [3, 2]]


def test_tokens_are_balanced_over_processes():
    assert lengths(share_rows(rows(10, 9, 8, 7, 6, 5), 2)) == [[10, 7, 6], [9, 8, 5]]


def test_a_process_with_fewer_micro_batches_splits_its_largest():
    plan = plan_microbatches(rows(100, 1, 1, 1, 1), 2, MicroBatchLimits(9, tokens=4), out)
    assert lengths(plan) == [[[100]], [[1, 1, 1, 1]]]
    plan = plan_microbatches(rows(50, 49, 9, 9, 9, 9), 2, MicroBatchLimits(9, tokens=60), out)
    # 50 + 9 + 9 and 49 + 9 + 9: as many micro-batches on each.
    assert lengths(plan) == [[[50], [9, 9]], [[49], [9, 9]]]


def test_a_process_without_rows_gets_a_filler():
    plan = plan_microbatches(rows(7, 5), 3, MicroBatchLimits(rows=1), out)
    assert lengths(plan) == [[[7]], [[5]], [[5]]]
    assert [part[0].in_loss for (part,) in plan] == [True, True, False]


def test_no_rows_at_all_are_an_error():
    with pytest.raises(ValueError, match="no rows to cut"):
        plan_microbatches([], 2, MicroBatchLimits(rows=1), out)


def test_any_plan_has_every_row_once_and_keeps_the_limits():
    rng = random.Random(0)
    for _ in range(300):
        given = rows(*(rng.randrange(1, 60) for _ in range(rng.randrange(1, 40))))
        limits = MicroBatchLimits(
            rng.randrange(1, 9), rng.choice([None, 30, 100]), padded=rng.random() < 0.5
        )
        plan = plan_microbatches(given, rng.randrange(1, 6), limits, out)
        assert len({len(parts) for parts in plan}) == 1
        flat = [row for parts in plan for part in parts for row in part]
        assert sorted(row.number for row in flat if row.in_loss) == list(range(len(given)))
        for parts in plan:
            for part in parts:
                assert 1 <= len(part) <= limits.rows
                width = max(row.num_tokens for row in part)
                total = sum(row.num_tokens for row in part)
                cost = len(part) * width if limits.padded else total
                assert limits.tokens is None or len(part) == 1 or cost <= limits.tokens


def test_share_of_padding():
    parts = [rows(4, 2), rows(1)]
    assert padded_share(parts, MicroBatchLimits(rows=2)) == pytest.approx(2 / 9)
    assert padded_share(parts, MicroBatchLimits(rows=2, padded=False)) == 0.0


def test_rows_with_one_prompt_come_together_and_count_it_once():
    prompts = [(7, 8), (7, 9), (7, 8), (7, 9), (7, 8)]
    five = [FakeRow(3 + n, n, prompt_ids=prompt) for n, prompt in enumerate(prompts)]
    limits = MicroBatchLimits(rows=None, tokens=14, shared=True)
    # (7, 8): 7 + 5 - 2 + 3 - 2 tokens; (7, 9): 6 + 4 - 2.
    parts = [[row.number for row in part] for part in cut_rows(five, limits)]
    assert parts == [[4, 2, 0], [3, 1]]
    shares = share_rows(five, 2, shared=True)
    assert [{row.prompt_ids for row in share} for share in shares] == [{(7, 8)}, {(7, 9)}]
    # Fewer prompts than processes: all have something to do.
    assert all(share_rows(five, 3, shared=True))
