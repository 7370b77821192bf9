"""A server that is slow is waited for; one that no longer answers is an error."""

import threading
import time

import pytest
from stub_vllm import StubServer

from trl_r1zero.generation import SamplingConfig, in_order
from trl_r1zero.generation.vllm_client import VLLMConnectionError, VLLMServerEngine


@pytest.fixture
def stub():
    server = StubServer()
    yield server
    server.close()


def sample(stub: StubServer, tokenizer, rows: int):
    engine = VLLMServerEngine(stub.base_url, tokenizer, read_timeout_seconds=1.0)
    sampling = SamplingConfig(max_tokens=4, min_tokens=0)
    return list(in_order(engine.stream([[1]] * rows, sampling, list(range(rows)))))


def test_rows_wait_for_one_another_longer_than_for_an_answer(stub, tokenizer):
    """As where a server is slower than its queue is long: nothing is wrong with it."""
    one_at_a_time, answer = threading.Lock(), stub.v1_completions

    def slowly(body, query):
        with one_at_a_time:
            time.sleep(0.4)
            return answer(body, query)

    stub.v1_completions = slowly
    begin = time.monotonic()
    assert len(sample(stub, tokenizer, 6)) == 6
    assert time.monotonic() - begin > 2.0


def test_a_server_without_any_answer_is_given_up(stub, tokenizer):
    stuck = threading.Event()
    stub.v1_completions = lambda body, query: stuck.wait(20)
    try:
        with pytest.raises(VLLMConnectionError, match="no answer within 1 seconds"):
            sample(stub, tokenizer, 2)
    finally:
        stuck.set()
