"""What is read out of a vLLM server's log."""

import pytest

from trl_r1zero.generation.vllm_log import first_error, gist, hint

WORKER_FAILS = """\
(APIServer pid=10) WARNING 11-24 13:01:10 [system_utils.py:249] errors like `OSError: too many`
(APIServer pid=10) INFO 11-24 13:01:11 [model.py:5] Using max model len 256
(Worker pid=30) ERROR 11-24 13:01:39 [multiproc_executor.py:1058] WorkerProc hit an exception.
(Worker pid=30) ERROR 11-24 13:01:39 [multiproc_executor.py:1058] Traceback (most recent call last):
(Worker pid=30) ERROR 11-24 13:01:39 [multiproc_executor.py:1058]   File "worker.py", line 3
(Worker pid=30) ERROR 11-24 13:01:39 [multiproc_executor.py:1058]     raise ValueError(
(Worker pid=30) ERROR 11-24 13:01:39 [multiproc_executor.py:1058] ValueError: the true reason
(EngineCore pid=20) ERROR 11-24 13:01:40 [core.py:1433] EngineCore failed to start.
(EngineCore pid=20) ERROR 11-24 13:01:40 [core.py:1433] Traceback (most recent call last):
(EngineCore pid=20) ERROR 11-24 13:01:40 [core.py:1433]   File "core.py", line 9, in run
(EngineCore pid=20) ERROR 11-24 13:01:40 [core.py:1433] Exception: WorkerProc initialization failed
(APIServer pid=10) Traceback (most recent call last):
(APIServer pid=10)   File "cli.py", line 7, in main
(APIServer pid=10) RuntimeError: Engine core initialization failed. See root cause above.
"""

CONTEXT_TOO_LONG = """\
(APIServer pid=10) INFO 11-24 13:01:11 [api_server.py:5] vLLM API server version 0.31.0
(APIServer pid=10) Traceback (most recent call last):
(APIServer pid=10)   File "cli.py", line 7, in main
(APIServer pid=10) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
(APIServer pid=10)   Value error, User-specified max_model_len (9000) is greater than the derived \
max_model_len (512) [type=value_error, input_value=ArgsKwargs((), {'model': 'x'}), input_type=A]
(APIServer pid=10)     For further information visit https://errors.pydantic.dev/2/v/value_error
"""


def test_the_first_of_a_cascade_of_tracebacks_is_the_error():
    assert first_error(WORKER_FAILS) == "ValueError: the true reason"


def test_the_reason_below_the_exceptions_name_is_part_of_it():
    error = first_error(CONTEXT_TOO_LONG)
    assert "max_model_len (9000) is greater than the derived max_model_len (512)" in error
    assert "input_value" not in error
    assert hint(error) == "lower max_model_len to what the model's config allows"


def test_an_engine_that_was_killed_is_the_reason_of_the_requests_that_failed():
    log = """\
(APIServer pid=10) ERROR 11-24 14:16:24 [async_llm.py:871] AsyncLLM output_handler failed.
(APIServer pid=10) ERROR 11-24 14:16:24 [async_llm.py:871] Traceback (most recent call last):
(APIServer pid=10) ERROR 11-24 14:16:24 [async_llm.py:871]   File "async_llm.py", line 817, in f
(APIServer pid=10) ERROR 11-24 14:16:24 [async_llm.py:871] EngineDeadError: See stack trace (above)
vllm_supervisor.py: the server lost its VLLM::Worker
"""
    assert first_error(log) == "vllm_supervisor.py: the server lost its VLLM::Worker"
    assert "memory ran out" in hint(first_error(log))


def test_a_log_without_an_error_has_none():
    assert first_error(WORKER_FAILS.partition("(Worker")[0]) is None
    assert first_error("") is None


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("main.py: error: unrecognized arguments: --no-such-flag", "extra_args"),
        ("OSError: [Errno 98] Address already in use", "port"),
        ("RuntimeError: Unsupported CPU attention configuration: head_dim=8", "32 dimensions"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "gpu_memory"),
        ("ValueError: something that nobody has met", None),
    ],
)
def test_usual_errors_come_with_advice(line, advice):
    if advice is None:
        assert hint(line) is None
    else:
        assert advice in hint(line)


def test_the_gist_is_the_newest_line_that_says_something():
    assert gist(WORKER_FAILS.partition("(Worker")[0]) == "Using max model len 256"
    assert gist("word " * 40, width=20) == "word word word wo..."
    assert gist("") == ""
