"""Several vLLM servers as one, on stubs whose tokens follow from the seed."""

import pytest
from stub_vllm import StubServer
from test_sleeping_server import has_weights_of
from tiny_grpo import load_tiny, make_trainer, train_lines

from trl_r1zero.generation.server_pool import VLLMServerPool
from trl_r1zero.generation.vllm_server import VLLMServerError

COMPARED = ("loss", "grad_norm", "reward", "length/mean", "entropy")


def awake(**settings) -> StubServer:
    return StubServer(enable_sleep_mode=False, **settings)


@pytest.fixture
def stubs():
    made = [awake(), awake()]
    yield made
    for stub in made:
        stub.close()


def of_even_length(response: str, ground_truth: str) -> dict[str, float]:
    return {"reward": float(len(response) % 2 == 0)}


def trainer_through(stubs, tokenizer, folder, **settings):
    return make_trainer(
        tokenizer,
        folder,
        model=load_tiny(tokenizer, folder.parent),
        reward=of_even_length,
        **{
            "use_vllm": True,
            "vllm_server_base_url": [stub.base_url for stub in stubs],
            "vllm_check_syncs": 0,
            "n_grpo_steps": 3,
            **settings,
        },
    )


def numbers(folder) -> list[list[float | None]]:
    return [[line.get(name) for name in COMPARED] for line in train_lines(folder)]


@pytest.fixture
def expected(tokenizer, tmp_path) -> list[list[float | None]]:
    """The numbers of a run with one server."""
    stub = awake()
    trainer_through([stub], tokenizer, tmp_path / "one").train()
    stub.close()
    made = numbers(tmp_path / "one")
    assert any(norm for _, norm, *_ in made)  # it learns something
    return made


def counted(stub: StubServer) -> list[int]:
    """The completions it was asked for, one entry for each; filled as it is."""
    asked: list[int] = []
    sample = stub.v1_completions
    stub.v1_completions = lambda body, query: (asked.append(1), sample(body, query))[1]
    return asked


def test_two_servers_share_the_work_and_have_the_weights(stubs, tokenizer, tmp_path, expected):
    asked = [counted(stub) for stub in stubs]
    trainer = trainer_through(stubs, tokenizer, tmp_path / "run")
    trainer.train()
    assert numbers(tmp_path / "run") == expected
    assert sum(map(len, asked)) == 3 * 16
    assert min(map(len, asked)) >= 16
    trainer.sampler.server.sync_weights()
    assert all(has_weights_of(trainer, stub) for stub in stubs)


def test_a_server_that_dies_is_left_out_and_taken_back(
    stubs, tokenizer, tmp_path, expected, caplog
):
    again, port = [], int(stubs[1].base_url.rpartition(":")[2])
    trainer = trainer_through(stubs, tokenizer, tmp_path / "run")
    steps, asked = [], []
    step = trainer.training_step

    def step_and_break(*args):
        steps.append(1)
        if len(steps) == 2:
            stubs[1].close()
        if len(steps) == 3:
            again.append(awake(port=port))
            asked.append(counted(again[0]))
        return step(*args)

    trainer.training_step = step_and_break
    trainer.train()
    again[0].close()
    assert numbers(tmp_path / "run") == expected
    assert f"the vLLM server at {stubs[1].base_url} is left out" in caplog.text
    assert len(asked[0]) > 4 and again[0].weights


def test_a_server_that_dies_while_it_samples_gives_its_work_to_the_others(
    stubs, tokenizer, tmp_path, expected
):
    sample, count = stubs[1].v1_completions, []

    def sample_and_die(body, query):
        count.append(1)
        if len(count) > 4:
            raise ConnectionResetError  # the connection is cut
        return sample(body, query)

    stubs[1].v1_completions = sample_and_die
    trainer_through(stubs, tokenizer, tmp_path / "run").train()
    assert numbers(tmp_path / "run") == expected


def test_the_last_one_is_an_error(stubs, tokenizer, tmp_path):
    trainer = trainer_through(stubs, tokenizer, tmp_path / "run")
    for stub in stubs:
        stub.close()
    with pytest.raises(VLLMServerError, match="did not answer"):
        trainer.train()


def test_servers_that_are_not_alike(stubs, tokenizer):
    urls = [stub.base_url for stub in stubs]
    with pytest.raises(ValueError, match="an address twice"):
        VLLMServerPool([urls[0], f"{urls[0]}/v1"], tokenizer)
    stubs[1].v1_models = lambda *_: {"data": [{"id": "other", "max_model_len": 4096}]}
    with pytest.raises(VLLMServerError, match=r"the model other, and .* stub"):
        VLLMServerPool(urls, tokenizer)
    stubs[1].enable_sleep_mode = True
    with pytest.raises(VLLMServerError, match="was started to sleep"):
        VLLMServerPool(urls, tokenizer)
