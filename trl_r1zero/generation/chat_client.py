"""Chat completions from any OpenAI-compatible server: a vLLM server's, or a hosted model's.

Many requests are on their way at once, each on a thread of its own. A server that is busy (HTTP
429), fails (5xx) or cannot be reached is asked again after a while, longer each time; any other
refusal ends it at once and is shown in the server's own words.
"""

import contextlib
import email.utils
import json
import queue
import random
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests

from .connections import CONNECT_TIMEOUT_SECONDS, error_message, is_loopback, new_session

_LONGEST_WAIT_SECONDS = 60.0  # between two attempts, unless the server names a time
_LONGEST_RETRY_AFTER_SECONDS = 600.0


class ChatServerError(RuntimeError):
    """The server cannot be reached, refused a request, or answered with something else."""


class _TryAgainError(Exception):
    """What may go well another time; the server may ask to wait so long."""

    def __init__(self, reason: str, after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds


@dataclass(frozen=True)
class ChatReply:
    """What the model said (empty if it said nothing), and why it ended: `stop`, `length`, ..."""

    text: str
    finish_reason: str | None


class ChatClient:
    """A server of chat completions; a ChatServerError if it cannot be asked for its models.

    Args:
        url: Such as `http://127.0.0.1:8000` or `https://host/v1`; without a path, `/v1` is added.
        model: Which of its models. None: the only one that it has.
        body: Further fields of every request, such as `max_tokens`.
        api_key: Sent as a bearer token if given.
        concurrency: Requests at a time.
        timeout_seconds: For a whole answer.
        retries: How often a request that may go well another time is repeated.
        first_wait_seconds: Before the first repetition; twice as long before each further one, up
            to a minute, but never shorter than the server's `Retry-After`.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        body: dict[str, Any] | None = None,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout_seconds: float = 300.0,
        retries: int = 6,
        first_wait_seconds: float = 1.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"got the address {url!r}, expected one such as http://127.0.0.1:8000 or "
                "https://host/v1"
            )
        self.url = url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self._is_local = is_loopback(parts.hostname)
        self.body = dict(body or {})
        self._api_key = api_key
        self.concurrency = concurrency
        self._timeouts = (CONNECT_TIMEOUT_SECONDS, timeout_seconds)
        self._retries = retries
        self._first_wait_seconds = first_wait_seconds
        self._threads = threading.local()
        self._ending = threading.Event()
        self.model = self._only_model() if model is None else model

    def ask(self, prompt: str) -> ChatReply:
        """The model's reply to one message of a user."""
        messages = [{"role": "user", "content": prompt}]
        body = {**self.body, "model": self.model, "messages": messages}
        answer = self._request("POST", "/chat/completions", body)
        try:
            choice = answer["choices"][0]
            # A model may have had no tokens left after its reasoning.
            text = choice["message"].get("content") or ""
            if not isinstance(text, str):
                raise TypeError
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ChatServerError(
                f"{self.url}/chat/completions answered {json.dumps(answer)[:300]}, expected a chat "
                "completion; is the address that of an OpenAI-compatible server?"
            ) from error
        return ChatReply(text, choice.get("finish_reason"))

    def ask_all(self, prompts: Sequence[str]) -> Generator[tuple[int, ChatReply]]:
        """Replies with the positions of their prompts, each as soon as it comes.

        After the first failure nothing more is asked, but the replies that are on their way are
        still yielded before it is raised.
        """
        self._ending.clear()
        waiting = enumerate(prompts)  # of all threads
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()  # pairs, errors, None at the end

        def work() -> None:
            try:
                while not self._ending.is_set() and (asked := next(waiting, None)) is not None:
                    answers.put((asked[0], self.ask(asked[1])))
            except BaseException as error:
                self._ending.set()
                answers.put(error)
            finally:
                answers.put(None)

        # Daemons, so that a program that is interrupted need not wait for the server.
        num_threads = min(self.concurrency, len(prompts))
        for _ in range(num_threads):
            threading.Thread(target=work, daemon=True).start()
        failure: BaseException | None = None
        try:
            while num_threads:
                answer = answers.get()
                if answer is None:
                    num_threads -= 1
                elif isinstance(answer, BaseException):
                    failure = failure or answer
                else:
                    yield answer
        finally:
            self._ending.set()
        if failure is not None:
            raise failure

    def _only_model(self) -> str:
        listed = self._request("GET", "/models")
        try:
            models = [model["id"] for model in listed["data"]]
        except (KeyError, TypeError) as error:
            raise ChatServerError(
                f"{self.url}/models answered {json.dumps(listed)[:300]}, expected a list of "
                "models; name the model yourself"
            ) from error
        if len(models) != 1:
            raise ChatServerError(
                f"the server at {self.url} has {len(models)} models, so name the one to ask: "
                f"{', '.join(models) or '(it lists none)'}"
            )
        return str(models[0])

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        attempt = 0
        while True:
            try:
                return self._request_once(method, path, body)
            except _TryAgainError as error:
                if attempt == self._retries or self._ending.is_set():
                    raise ChatServerError(
                        f"{self.url}{path} failed {attempt + 1} time{'s' if attempt else ''}, at "
                        f"last: {error}"
                    ) from error
                self._wait(attempt, error)
            attempt += 1

    def _wait(self, attempt: int, error: _TryAgainError) -> None:
        # Up to a quarter more by chance, so that all threads do not come back at the same moment.
        wanted = self._first_wait_seconds * 2**attempt * random.uniform(1, 1.25)
        seconds = max(min(wanted, _LONGEST_WAIT_SECONDS), error.after_seconds)
        if seconds > _LONGEST_RETRY_AFTER_SECONDS:
            raise ChatServerError(
                f"{self.url} wants to be asked again in {seconds:.0f} s only ({error}); start "
                "again then"
            ) from error
        self._ending.wait(seconds)

    def _request_once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        if not hasattr(self._threads, "session"):  # one for each thread, which stays open
            self._threads.session = new_session(use_proxies=not self._is_local)
        try:
            response: requests.Response = self._threads.session.request(
                method,
                self.url + path,
                json=body,
                timeout=self._timeouts,
                auth=self._authorize,
                allow_redirects=False,  # a POST would become a GET
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _TryAgainError(f"no answer ({error})") from error
        except requests.RequestException as error:
            raise ChatServerError(f"{self.url}{path} cannot be asked: {error}") from error
        status, text = response.status_code, response.text
        if status == 429 or status >= 500:
            reason = f"HTTP {status}: {error_message(text)}"
            raise _TryAgainError(reason, _retry_after(response.headers.get("Retry-After", "")))
        if status != 200:
            raise ChatServerError(
                f"{self.url}{path} was refused (HTTP {status}): {error_message(text)}"
            )
        try:
            return json.loads(text)
        except ValueError as error:
            raise ChatServerError(
                f"{self.url}{path} answered no JSON but {text[:300]!r}; is the address that of an "
                "OpenAI-compatible server?"
            ) from error

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As a function, even without a key: else requests would look for one in ~/.netrc.
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def _retry_after(header: str) -> float:
    """Seconds from now, of the header's two forms: seconds, or a date; 0 for anything else."""
    with contextlib.suppress(ValueError):
        return float(header)
    with contextlib.suppress(ValueError):
        return email.utils.parsedate_to_datetime(header).timestamp() - time.time()
    return 0.0
