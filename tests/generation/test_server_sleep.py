"""What may follow what between a trainer and a server that sleeps."""

import pytest

from trl_r1zero.generation.server_sleep import Memory, Request, ServerState

READY = ServerState(Memory.ALL, has_weights=True)


def run(state: ServerState, *requests: Request, sleep_level: int = 2) -> ServerState:
    for request in requests:
        state = state.after(request, sleep_level)
    return state


def test_a_whole_step_leads_back_to_its_start():
    step = (
        Request.SAMPLE,
        Request.SLEEP,
        Request.WAKE_WEIGHTS,
        Request.SEND_WEIGHTS,
        Request.WAKE_CACHE,
    )
    assert run(READY, *step) == READY


@pytest.mark.parametrize(
    ("sleep_level", "expected"),
    [
        (1, [Request.WAKE_WEIGHTS, Request.WAKE_CACHE]),
        # Level 2 forgets them, whether or not the trainer's have changed.
        (2, [Request.WAKE_WEIGHTS, Request.SEND_WEIGHTS, Request.WAKE_CACHE]),
    ],
)
def test_what_comes_before_sampling_after_a_sleep(sleep_level, expected):
    asleep = run(READY, Request.SLEEP, sleep_level=sleep_level)
    assert asleep.before_sampling() == expected
    assert run(asleep, *expected, sleep_level=sleep_level) == READY


def test_weights_that_changed_are_sent_in_any_state():
    assert READY.before_sampling() == []
    assert READY.with_old_weights().before_sampling() == [Request.SEND_WEIGHTS]
    assert ServerState().before_sampling() == [Request.SEND_WEIGHTS]  # a new server
    asleep = run(READY, Request.SLEEP, sleep_level=1).with_old_weights()
    assert asleep.before_sampling() == [
        Request.WAKE_WEIGHTS,
        Request.SEND_WEIGHTS,
        Request.WAKE_CACHE,
    ]
    # The transfer failed: what is left is done.
    half_awake = run(asleep, Request.WAKE_WEIGHTS)
    assert half_awake.before_sampling() == [Request.SEND_WEIGHTS, Request.WAKE_CACHE]


@pytest.mark.parametrize(
    ("state", "request_", "message"),
    [
        (ServerState(Memory.NOTHING), Request.SEND_WEIGHTS, "is asleep cannot take new weights"),
        (ServerState(Memory.NOTHING), Request.WAKE_CACHE, "is asleep cannot wake its key-value"),
        (ServerState(Memory.NOTHING), Request.SLEEP, "is asleep cannot sleep; it has to be awake"),
        (ServerState(Memory.NOTHING, True), Request.SAMPLE, "is asleep cannot sample"),
        (ServerState(Memory.WEIGHTS, True), Request.SAMPLE, "is half awake.* cannot sample"),
        (ServerState(Memory.WEIGHTS, True), Request.SLEEP, "is half awake.* cannot sleep"),
        (ServerState(), Request.SAMPLE, "without the trainer's weights cannot sample"),
        (READY, Request.WAKE_WEIGHTS, "is awake cannot wake the memory of its weights"),
    ],
)
def test_what_may_not_follow_is_an_error(state, request_, message):
    with pytest.raises(RuntimeError, match=message):
        state.after(request_, 2)
