"""Trainers whose vLLM server sleeps while they train, on a stub that refuses any other order."""

import pytest
import torch
from stub_vllm import StubServer, as_own_server
from test_expert_iteration import make_trainer as make_expert_iteration_trainer
from tiny_grpo import load_tiny, make_trainer, train_lines
from tiny_sft import make_sft_trainer

from trl_r1zero.devices.memory import GIB
from trl_r1zero.generation.vllm_server import VLLMServerError
from trl_r1zero.trainers import R1ZeroGRPOConfig, policy_forward, read_metrics, server_generation

SLEEP = "/sleep[2]"
SEND = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
WAKE_AND_SEND = ["/wake_up[weights]", *SEND, "/wake_up[kv_cache]"]
SAMPLE = "/v1/completions"
CONNECT = "/init_weight_transfer_engine"


@pytest.fixture
def stub():
    stub = StubServer()
    yield stub
    stub.close()


def through(stub: StubServer, **settings) -> dict:
    # No probe: the stub's log-probabilities are made up.
    url = {"use_vllm": True, "vllm_server_base_url": stub.base_url, "vllm_check_syncs": 0}
    return {**url, **settings}


def all_right(response: str, ground_truth: str) -> dict[str, float]:
    return {"reward": 1.0}


def memory_at_each_forward(trainer, stub: StubServer) -> list[str]:
    """What the server holds whenever the policy, or its reference, runs; filled as it does."""
    seen: list[str] = []
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            model.register_forward_pre_hook(lambda *_: seen.append(stub.memory))
    return seen


def has_weights_of(trainer, stub: StubServer) -> bool:
    state = dict(trainer.model.named_parameters())
    return stub.weights is not None and all(
        torch.equal(tensor, state[name]) for name, tensor in stub.weights.items()
    )


def test_grpo_steps_in_the_order_of_a_shared_device(tokenizer, stub, tmp_path):
    trainer = make_trainer(
        tokenizer,
        tmp_path / "run",
        model=load_tiny(tokenizer, tmp_path),
        # Passes of all kinds: old and reference log-probabilities, updates, entropies.
        **through(stub, train_batch_size=8, loss_type="grpo_clip", beta=0.1, eval_every=2),
    )
    seen = memory_at_each_forward(trainer, stub)
    trainer.train()
    assert stub.requests == [
        *[CONNECT, *SEND, SAMPLE, SLEEP],  # validation before the first step; its entropies
        *[*WAKE_AND_SEND, SAMPLE, SLEEP],  # nothing was trained, but level 2 forgets the weights
        *[*WAKE_AND_SEND, SAMPLE, SLEEP],
        *[*WAKE_AND_SEND, SAMPLE, SLEEP],  # validation
    ]
    assert len(seen) > 10
    assert set(seen) == {"asleep"}
    lines = train_lines(tmp_path / "run")
    updates_that_sample = [line for line in lines if line["seconds/generation"] > 0]
    assert len(updates_that_sample) == 2
    for line in updates_that_sample:
        assert line["seconds/server_wake"] > 0
        assert line["seconds/server_sleep"] > 0
    assert lines[1]["seconds/server_sleep"] == 0  # it sleeps already at the second update


def test_expert_iteration_and_its_sft_take_the_same_order(tokenizer, stub, tmp_path):
    trainer = make_expert_iteration_trainer(
        tokenizer, tmp_path, reward=all_right, **through(stub, n_ei_steps=2)
    )
    seen = memory_at_each_forward(trainer, stub)
    trainer.train()
    assert stub.requests == [
        *[CONNECT, *SEND, SAMPLE, SLEEP],
        *[*WAKE_AND_SEND, SAMPLE, SLEEP],
    ]
    assert set(seen) == {"asleep"}


def test_sft_wakes_the_server_for_validation_alone(tokenizer, stub, tmp_path):
    settings = through(stub, eval_every=2, eval_on_start=False)
    trainer = make_sft_trainer(tokenizer, tmp_path, **settings)
    seen = memory_at_each_forward(trainer, stub)
    trainer.train()
    evaluation = [*WAKE_AND_SEND, SAMPLE, SLEEP]
    assert stub.requests[:2] == [CONNECT, SLEEP]
    rest = stub.requests[2:]
    assert rest == evaluation * 3  # 40 rows are 5 updates: after 2, 4, and the last
    assert set(seen) == {"asleep"}
    slept = [line["seconds/server_sleep"] for line in read_metrics(tmp_path) if "loss" in line]
    assert slept[0] > 0


def test_the_trainer_gives_memory_back_before_the_server_takes_it(
    tokenizer, stub, tmp_path, monkeypatch
):
    def empty(garbage_collection: bool) -> None:
        stub.requests.append("the trainer's cache is emptied")

    monkeypatch.setattr(server_generation, "clear_device_cache", empty)
    trainer = make_trainer(tokenizer, tmp_path, **through(stub))
    trainer.train()
    freed = "the trainer's cache is emptied"
    step = [*SEND, SAMPLE, SLEEP]
    assert stub.requests[:-1] == [
        *[freed, CONNECT, *step],
        *[freed, "/wake_up[weights]", *SEND, freed, "/wake_up[kv_cache]", SAMPLE],
    ]


def test_the_optimizer_has_its_memory_before_the_policy_runs(tokenizer, stub, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, **through(stub))
    have_averages = []
    trainer.model.register_forward_pre_hook(
        lambda *_: have_averages.append(
            all(trainer.optimizer.state.get(p) for p in trainer.model.parameters())
        )
    )
    trainer.train()
    assert have_averages and all(have_averages)


def test_the_probe_of_the_policy_comes_before_the_server_wakes(
    tokenizer, stub, tmp_path, monkeypatch
):
    """The memory of its forward pass would be missing to a server that has its own back."""
    compared = []
    trainer = make_trainer(tokenizer, tmp_path, **through(stub, vllm_check_syncs=2))
    monkeypatch.setattr(
        trainer.server, "check_probe", lambda *probe: compared.append((stub.memory, probe))
    )
    seen = memory_at_each_forward(trainer, stub)
    trainer.train()
    assert [memory for memory, _ in compared] == ["awake", "awake"]
    assert len(seen) > 2
    assert set(seen) == {"asleep"}


def test_the_memory_to_train_with_is_measured_while_the_server_sleeps(
    tokenizer, stub, tmp_path, monkeypatch
):
    measured = []

    def measure(device: torch.device) -> int:
        measured.append(stub.memory)
        return 4 * GIB

    monkeypatch.setattr(policy_forward, "bytes_to_train_with", measure)
    trainer = make_trainer(tokenizer, tmp_path, **through(stub, gradient_accumulation_steps=None))
    trainer.train()
    assert measured[-1] == "asleep"
    assert trainer.policy.memory.device_bytes == 4 * GIB


def test_a_server_that_cannot_sleep_stays_awake(tokenizer, tmp_path):
    stub = StubServer(enable_sleep_mode=False)
    trainer = make_trainer(tokenizer, tmp_path, **through(stub))
    trainer.train()
    assert stub.requests == [CONNECT, *SEND, SAMPLE, *SEND, SAMPLE]
    assert all("seconds/server_sleep" not in line for line in train_lines(tmp_path))
    stub.close()


def test_a_server_that_its_last_trainer_left_asleep_is_woken(tokenizer, tmp_path):
    stub = StubServer(asleep=True)
    trainer = make_trainer(tokenizer, tmp_path, **through(stub, n_grpo_steps=1))
    trainer.train()
    assert stub.requests == [CONNECT, *WAKE_AND_SEND, SAMPLE, SLEEP]
    stub.close()


def test_the_weights_that_it_samples_with_are_the_newest(tokenizer, stub, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, **through(stub, n_grpo_steps=3))
    sample, agreed = trainer.server.sample, []

    def spy(*args, **kwargs):
        completions = sample(*args, **kwargs)
        agreed.append(has_weights_of(trainer, stub))
        # What the server's memory is to be taken from.
        assert all(parameter.grad is None for parameter in trainer.model.parameters())
        return completions

    trainer.server.sample = spy
    trainer.train()
    assert agreed == [True] * 3


def test_level_1_keeps_the_weights_where_nothing_was_trained(
    tokenizer, stub, tmp_path, monkeypatch
):
    as_own_server(monkeypatch, stub)
    settings = {"use_vllm": True, "vllm_server": {"sleep_level": 1}, "vllm_check_syncs": 0}
    model = load_tiny(tokenizer, tmp_path)
    trainer = make_trainer(tokenizer, tmp_path / "run", model=model, **settings, eval_every=2)
    trainer.evaluate()
    trainer.evaluate()
    assert stub.requests == [
        *[CONNECT, *SEND, SAMPLE, "/sleep[1]"],
        *["/wake_up[weights]", "/wake_up[kv_cache]", SAMPLE, "/sleep[1]"],
    ]
    assert has_weights_of(trainer, stub)


@pytest.mark.parametrize("sleep_level", [1, 2])
@pytest.mark.parametrize("when", ["asleep", "before it sleeps", "half awake"])
def test_a_server_that_dies_is_started_again_and_gets_the_weights(
    tokenizer, tmp_path, monkeypatch, sleep_level, when
):
    stubs = StubServer(), StubServer()
    as_own_server(monkeypatch, *stubs)
    server = {"vllm_server": {"sleep_level": sleep_level}, "vllm_check_syncs": 0}
    trainer = make_trainer(
        tokenizer,
        tmp_path / "run",
        model=load_tiny(tokenizer, tmp_path),
        use_vllm=True,
        eval_every=2,
        **server,
    )
    trainer.evaluate()
    if when == "before it sleeps":
        trainer.server.wake_up()
    if when == "half awake":
        ways = trainer.server._ways
        send = ways.send

        def die_and_send(requests_run: bool) -> None:
            stubs[0].close()
            ways.send = send
            send(requests_run)

        ways.send = die_and_send
        trainer.state.global_step += 1  # as after an update
    else:
        stubs[0].close()
    if when == "before it sleeps":
        trainer.server.release()
    trainer.evaluate()
    # Without an update in between, and at level 1 too: a new server has its folder's weights.
    sleep, cycle = f"/sleep[{sleep_level}]", []
    if when == "before it sleeps":
        cycle = [sleep, "/wake_up[weights]"]
    woken = ["/wake_up[kv_cache]"] if cycle else []
    assert stubs[1].requests == [CONNECT, *cycle, *SEND, *woken, SAMPLE, sleep]
    stubs[1].close()


def test_a_sleeping_server_is_no_server_for_staleness(tokenizer, stub, tmp_path):
    ahead = {"max_staleness": 1, "old_log_probs": "sampler", "loss_type": "grpo_clip"}
    with pytest.raises(ValueError, match=r"sleep_level: 2, so it sleeps then; set sleep_level to"):
        R1ZeroGRPOConfig(
            output_dir=str(tmp_path), use_vllm=True, vllm_server={"sleep_level": 2}, **ahead
        )
    # Of somebody else's server only the server itself knows.
    with pytest.raises(ValueError, match=r"sleeps then; start it without --enable-sleep-mode"):
        make_trainer(tokenizer, tmp_path, **through(stub, **ahead))
    assert SAMPLE not in stub.requests


def test_a_device_without_room_is_an_error_that_says_what_to_lower(tokenizer, stub, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, **through(stub))
    trainer.server.sync_weights()
    trainer.server.release()
    stub.memory = "weights"  # the stub refuses what it has woken already
    with pytest.raises(VLLMServerError, match=r"refused /wake_up.*\n.*lower gpu_memory_utiliz"):
        trainer.server.wake_up()
