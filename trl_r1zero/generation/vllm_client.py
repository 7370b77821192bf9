"""Sampling from a vLLM server over HTTP.

One request for each row, all of them on their way at once: the server's scheduler sees the whole
batch, and each row has its own seed. A server that gives no answer for long is an error; a refusal
is shown in the server's own words.
"""

import asyncio
import errno
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import aiohttp
import requests
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from . import vllm_compat
from .balancer import Balancer
from .connections import (
    CONNECT_TIMEOUT_SECONDS,
    is_healthy,
    new_session,
    open_files_hint,
    room_for_connections,
)
from .endings import Endings
from .sampling import Completion, SamplingConfig, check_rows
from .vllm_errors import VLLMConnectionError, VLLMRefusal
from .vllm_server import VLLMServer, VLLMServerConfig, VLLMServerError

# More than vLLM runs at a time by default (max_num_seqs): its waiting queue must not run dry. Where
# this process may not open so many files, it is fewer; the rest waits here.
MAX_CONCURRENT_REQUESTS = 1024


class VLLMServerEngine:
    """An `Engine` over a vLLM server.

    Args:
        base_url: Such as `http://127.0.0.1:8000`.
        tokenizer: By default, loaded from where the server loaded the model.
        server: The server's process, if this process started it; `close` stops it.
        read_timeout_seconds: How long the server may take for an answer; of many completions at a
            time, until the next one, as some wait for others.
        wait_seconds: How long to wait for a server that is not up yet.
    """

    name = "vllm-server"

    def __init__(
        self,
        base_url: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        server: VLLMServer | None = None,
        read_timeout_seconds: float = 600.0,
        wait_seconds: float = 0.0,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.server = server
        self.read_timeout_seconds = read_timeout_seconds
        self.balancer = Balancer([self.base_url])
        self.members = [self]  # the servers behind it
        self._heard = time.monotonic()  # when it last gave an answer, or the beginning of one
        self._wait_until_up(wait_seconds)
        model = self.request("GET", "/v1/models")["data"][0]
        self.model: str = model["id"]
        self.max_model_len: int = model["max_model_len"]
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(model.get("root") or self.model)
        self.tokenizer = tokenizer

    @classmethod
    def start(
        cls,
        model: str,
        config: VLLMServerConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        log_path: Path | None = None,
        **timeouts: float,
    ) -> "VLLMServerEngine":
        """An engine on a server of its own, which `close` stops; see `VLLMServer`."""
        server = VLLMServer(model, config, log_path=log_path)
        server.start()
        try:
            return cls(server.base_url, tokenizer, server=server, **timeouts)
        except BaseException:
            server.stop()
            raise

    def close(self) -> None:
        """Stop the server if it is this engine's own."""
        if self.server is not None:
            self.server.stop()

    @property
    def alive(self) -> "list[VLLMServerEngine]":
        """The servers behind it that are asked."""
        return [one for one in self.members if one.base_url in self.balancer.alive]

    def returning(self) -> "list[VLLMServerEngine]":
        """Those that were left out and are up again; `balancer.take_back` once they have the
        weights."""
        return [one for one in self.members if one.base_url in self.balancer.lost and one.is_up()]

    def lose(self, url: str, error: BaseException) -> bool:
        """Leave out the server at `url`, which failed; False if no other one is left."""
        return self.balancer.lose(url)

    # Sampling

    def stream(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        on_first_token: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """As `Engine.stream`; there are no entropies.

        `on_first_token` is told each row, in another thread, once its first token is sampled.

        Log-probabilities are those of the distribution that was sampled from: after top-p, top-k
        and min-p, the end-of-sequence token ruled out before `min_tokens`.

        Raises:
            ValueError: See `check_rows`.
            VLLMServerError: The server refused a request, or this process may open no more files.
            VLLMConnectionError: The server cannot be reached, or cut a request off.
        """
        check_rows(prompt_ids, seeds, sampling.max_tokens, self.max_model_len)
        endings = Endings(self.tokenizer, sampling)
        settings = {
            "model": self.model,
            **asdict(sampling),
            "stop": sampling.stop_strings,
            "stop_token_ids": endings.end_token_ids,
            "include_stop_str_in_output": True,
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        if on_first_token is not None:
            settings |= vllm_compat.FIRST_TOKEN_APART
        bodies = [
            {**settings, "prompt": list(ids), "seed": seed}
            for ids, seed in zip(prompt_ids, seeds, strict=True)
        ]
        for row, response in self._post_all("/v1/completions", bodies, on_first_token):
            yield row, _completion(response, endings, prompt_ids[row])

    def log_probs(self, prompt_ids: Sequence[int]) -> list[float]:
        """The server's log-probability of each token but the first, in nats."""
        body = {
            "model": self.model,
            "prompt": list(prompt_ids),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0,
        }
        choice = self.request("POST", "/v1/completions", body)["choices"][0]
        return [
            float(position[str(token)]["logprob"])
            for position, token in zip(choice["prompt_logprobs"][1:], prompt_ids[1:], strict=True)
        ]

    # Sleeping (`server_sleep` says what may follow what)

    def sleep(self, level: int) -> None:
        """Give up the memory of the device, once the requests that run have their answers; level 1
        keeps a copy of the weights in the host's memory, level 2 forgets them."""
        self.request("POST", vllm_compat.SLEEP.format(level=level))

    def wake_up(self, what: Literal["weights", "kv_cache"]) -> None:
        """Take memory of the device again: that of the weights first, then the key-value cache."""
        try:
            self.request("POST", vllm_compat.WAKE_UP.format(tag=what))
        except VLLMRefusal as error:
            raise VLLMServerError(
                f"{error}\nIf its log says that memory is short: what the trainer keeps on the "
                "device and what the server was started with do not fit together; lower "
                "gpu_memory_utilization of vllm_server"
            ) from error

    def is_sleeping(self) -> bool:
        """Whether it has given up its memory, or part of it, or takes no requests."""
        return bool(self.request("GET", vllm_compat.IS_SLEEPING)["is_sleeping"])

    def can_sleep(self) -> bool:
        """Whether it was started so that sleeping frees memory."""
        return bool(self.server_info()["model_config"].get("enable_sleep_mode", False))

    # HTTP

    def is_up(self) -> bool:
        """Whether the server says that it is healthy."""
        return is_healthy(self.base_url, min(self.read_timeout_seconds, 10.0))

    def is_down(self, within_seconds: float) -> bool:
        """Whether the server is gone, or goes soon: a dying one answers for a while."""
        deadline = time.monotonic() + within_seconds
        while self.is_up() and (self.server is None or self.server.is_alive()):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        return True

    def server_info(self) -> dict[str, Any]:
        """vLLM's resolved configuration."""
        try:
            info = self.request("GET", vllm_compat.SERVER_INFO)
        except VLLMRefusal as error:
            if error.status != 404:
                raise
            raise VLLMServerError(
                f"the vLLM server at {self.base_url} takes no weights: it was started without its "
                "development endpoints; start it with `trl-r1zero serve MODEL`"
            ) from error
        config: dict[str, Any] = info["vllm_config"]
        return config

    def max_lora_rank(self) -> int | None:
        """The largest rank of LoRA adapters that it takes; None if it takes none."""
        config = self.server_info().get("lora_config")
        return None if config is None else int(config["max_lora_rank"])

    def dtype(self) -> str:
        """What the server computes in, such as `bfloat16`."""
        return str(self.server_info()["model_config"]["dtype"]).removeprefix("torch.")

    def request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        read_timeout_seconds: float | None = None,
    ) -> Any:
        """One request; never repeated, as not every one may be. A VLLMServerError if the server
        refused it, cannot be reached, or cut it off."""
        timeouts = (CONNECT_TIMEOUT_SECONDS, read_timeout_seconds or self.read_timeout_seconds)
        try:
            with new_session() as session:
                url = self.base_url + path
                response = session.request(method, url, json=body, timeout=timeouts)
        except requests.RequestException as error:
            raise self._connection_error(path, error) from error
        if response.status_code != 200:
            raise VLLMRefusal(path, response.status_code, response.text)
        in_words = path in (vllm_compat.LOAD_ADAPTER, vllm_compat.UNLOAD_ADAPTER)
        return json.loads(response.text) if response.text and not in_words else None

    def _post_all(
        self,
        path: str,
        bodies: list[dict[str, Any]],
        on_first_token: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Answers to all requests, each as it comes; the first error ends it and is raised."""
        wanted = MAX_CONCURRENT_REQUESTS * len(self.balancer.alive)
        connections = room_for_connections(min(len(bodies), wanted))
        if bodies and connections < 1:
            raise VLLMServerError(
                f"there is no room for a connection to the vLLM server: {open_files_hint()}"
            )
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()  # pairs, an error, None at the end
        loop = asyncio.new_event_loop()
        self._heard = time.monotonic()
        posts = self._post_all_async(path, bodies, answers, connections, on_first_token)
        sending = loop.create_task(posts)

        def run() -> None:
            try:
                loop.run_until_complete(sending)
            except asyncio.CancelledError:
                pass  # by the consumer, which knows why
            except BaseExceptionGroup as group:
                answers.put(group.exceptions[0])
            finally:
                answers.put(None)

        # A thread with a loop of its own: the caller's thread may be running one (notebooks do).
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while (answer := self._next(answers)) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        except queue.Empty:
            waited = TimeoutError(f"no answer within {self.read_timeout_seconds:g} seconds")
            raise self._connection_error(path, waited) from None
        finally:
            if thread.is_alive():
                loop.call_soon_threadsafe(sending.cancel)  # the caller went away, or one failed
            thread.join()
            loop.close()

    def _next(self, answers: "queue.SimpleQueue[Any]") -> Any:
        """The next answer; `queue.Empty` if the server has been silent for too long, also about
        what it was asked for before."""
        while True:
            left = self._heard + self.read_timeout_seconds - time.monotonic()
            try:
                return answers.get(timeout=max(left, 0.0))
            except queue.Empty:
                if time.monotonic() >= self._heard + self.read_timeout_seconds:
                    raise

    async def _post_all_async(
        self,
        path: str,
        bodies: list[dict[str, Any]],
        answers: "queue.SimpleQueue[Any]",
        connections: int,
        on_first_token: Callable[[int], None] | None,
    ) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        # Not the connector waits for room, but who is to choose a server.
        free = asyncio.Semaphore(max(connections, 1))
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

            async def send(url: str, row: int, body: dict[str, Any]) -> dict[str, Any]:
                try:
                    async with session.post(url + path, json=body) as response:
                        data = b""
                        async for piece in response.content.iter_any():
                            self._heard = time.monotonic()
                            if on_first_token is not None and not data:
                                on_first_token(row)
                            data += piece
                except (aiohttp.ClientError, TimeoutError) as error:
                    raise self._connection_error(path, error, url) from error
                if response.status != 200:
                    raise VLLMRefusal(path, response.status, data.decode("utf-8", "replace"))
                return vllm_compat.answer_of(data)

            async def post(row: int, body: dict[str, Any]) -> None:
                while True:
                    async with free:
                        with self.balancer.place() as url:
                            try:
                                answers.put((row, await send(url, row, body)))
                                return
                            except (VLLMConnectionError, VLLMRefusal) as error:
                                # What one refuses, others would; what broke one may not.
                                refused = isinstance(error, VLLMRefusal) and error.status < 500
                                if refused or not self.lose(url, error):
                                    raise

            async with asyncio.TaskGroup() as group:
                for row, body in enumerate(bodies):
                    group.create_task(post(row, body))

    def _connection_error(
        self, path: str, error: BaseException, url: str | None = None
    ) -> VLLMServerError:
        details, server = str(error) or type(error).__name__, url or self.base_url
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            # Not a `VLLMConnectionError`: nothing is wrong with the server.
            return VLLMServerError(
                f"no connection to the vLLM server at {server} for {path} ({details}): "
                f"{open_files_hint()}"
            )
        return VLLMConnectionError(f"the vLLM server at {server} did not answer {path}: {details}")

    def _wait_until_up(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_up():
            if time.monotonic() >= deadline:
                raise VLLMConnectionError(
                    f"there is no vLLM server at {self.base_url} (waited {seconds:g} s); start one "
                    "with `trl-r1zero serve MODEL`, or correct the address"
                )
            time.sleep(0.5)


def _completion(
    response: dict[str, Any], endings: Endings, prompt_ids: Sequence[int]
) -> Completion:
    choice = response["choices"][0]
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise VLLMServerError(f"the vLLM server ended a completion with {reason!r}")
    log_probs = [
        math.nan if value is None else float(value)  # JSON has no NaN
        for value in choice["logprobs"]["token_logprobs"]
    ]
    return endings.completion(
        prompt_ids, choice["token_ids"], log_probs, (reason, choice.get("stop_reason"))
    )
