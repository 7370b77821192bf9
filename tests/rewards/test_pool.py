"""The pool: order, deadlines, dead workers, memory, progress."""

import os
import threading
import time

import numpy as np
import pytest

from trl_r1zero.rewards import RewardPool, explain, r1_zero_reward_fn
from trl_r1zero.rewards.latex_stage import close_latex_pool, is_repetitive

LEAKED: list[np.ndarray] = []


def grade(response: str, truth: str) -> dict[str, float]:
    if response == "hang":
        time.sleep(60)
    if response == "loop":
        while True:
            pass
    if response == "die":
        os._exit(3)
    if response == "eat":
        return {"reward": float(len(bytearray(4 << 30)))}
    if response == "raise":
        raise ValueError("no such answer")
    return {"reward": float(response == truth)}


def test_results_come_in_order_and_a_bad_row_costs_only_itself():
    rows = [(str(i), "7") for i in range(200)]
    bad = {3: "hang", 50: "die", 51: "eat", 100: "raise", 150: "loop", 199: "die"}
    for index, response in bad.items():
        rows[index] = (response, "7")
    with RewardPool(grade, workers=3, deadline_s=2.0, memory_mb=500) as pool:
        results = pool.map(rows)
        failures = dict(pool.failures)
        again = pool.map([("7", "7"), ("8", "7")])
    assert [i for i, result in enumerate(results) if result.failure] == sorted(bad)
    assert [result.value for i, result in enumerate(results) if i not in bad] == [
        {"reward": float(i == 7)} for i in range(200) if i not in bad
    ]
    assert results[3].failure == results[150].failure == "timeout"
    assert results[50].failure == results[199].failure == "died"
    assert "3" in results[50].detail  # the exit code
    assert results[51].failure == "error" and "MemoryError" in results[51].detail
    assert "no such answer" in results[100].detail
    assert failures == {"timeout": 2, "died": 2, "error": 2}
    assert [result.value["reward"] for result in again] == [1.0, 0.0]


def leaks(response: str, truth: str) -> dict[str, float]:
    """Each row costs memory for good; `die` ends the worker that has graded others."""
    LEAKED.append(np.empty(40 * 2**20, np.uint8))  # whose error is a class of numpy's
    if response == "die" and len(LEAKED) > 1:
        os._exit(3)
    return {"reward": float(len(response))}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_rows_before_have_left_costs_no_row(workers):
    rows = [("die" if row % 5 == 4 else "x" * row, "1") for row in range(20)]
    with RewardPool(leaks, workers=workers, memory_mb=150) as pool:
        values = [result.value for result in pool.map(rows)]
    assert values == [{"reward": float(len(response))} for response, _ in rows]
    assert not pool.failures


def test_a_worker_killed_from_outside_between_batches_is_replaced():
    with RewardPool(grade, workers=1, deadline_s=5.0) as pool:
        assert pool.map([("7", "7")])[0].value == {"reward": 1.0}
        pool._workers[0].process.kill()
        pool._workers[0].process.join()
        results = pool.map([("7", "7")] * 3)
    assert [result.value for result in results] == [{"reward": 1.0}] * 3


def test_workers_end_when_the_pool_is_closed():
    pool = RewardPool(grade, workers=2)
    pool.start()
    processes = [worker.process for worker in pool._workers]
    assert all(process.is_alive() for process in processes)
    pool.close()
    assert not any(process.is_alive() for process in processes)


def test_progress_is_reported_for_every_row():
    seen: list[tuple[int, int]] = []
    with RewardPool(grade, workers=2) as pool:
        pool.map([("7", "7")] * 5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_an_empty_batch_needs_no_worker():
    pool = RewardPool(grade, workers=2)
    assert pool.map([]) == []
    assert pool._workers == []


def test_a_function_that_raises_on_every_row_is_an_error():
    with (
        RewardPool(grade, workers=2) as pool,
        pytest.raises(RuntimeError, match=r"all 3 rows.*no such answer"),
    ):
        pool.map([("raise", "7")] * 3)


@pytest.mark.parametrize("settings", [{"workers": 0}, {"deadline_s": 0.0}, {"memory_mb": -1}])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="must be"):
        RewardPool(grade, **settings)


def test_a_pool_can_be_used_from_several_threads():
    results: list[float] = []
    with RewardPool(grade, workers=2) as pool:

        def work() -> None:
            results.extend(result.value["reward"] for result in pool.map([("7", "7")] * 20))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [1.0] * 60


def test_fast_false_turns_some_wrongs_into_rights_in_any_thread():
    pairs = {r"\frac{2}{4}": "1/2", "4/2": "2", r"\{2,1\}": r"\{1,2\}", "3": "4"}
    fast = [
        r1_zero_reward_fn(f"</think> <answer>{a}</answer>", t)["reward"] for a, t in pairs.items()
    ]
    slow: list[float] = []

    def work() -> None:
        slow.extend(
            r1_zero_reward_fn(f"</think> <answer>{a}</answer>", t, fast=False)["reward"]
            for a, t in pairs.items()
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert fast == [0.0, 0.0, 0.0, 0.0]
    assert slow == [1.0, 1.0, 1.0, 0.0]
    assert explain("</think> <answer>4/2</answer>", "2", fast=False).rule == "latex_equal"
    close_latex_pool()


def test_repetition():
    # Of "aaa...a" with n letters neighbours in the suffix list share 1 + 2 + ... + (n - 1)
    # letters: ratio (n-1)/(n+1).
    assert is_repetitive("a" * 129)
    assert not is_repetitive("a" * 128)
    assert not is_repetitive("".join(chr(0x4E00 + i) for i in range(200)))
