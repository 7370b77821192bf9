"""A judge to test with: a server as OpenAI's, by a rule; and folders of answers, by hand."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Status, body (text, or what becomes JSON), headers.
Answer = tuple[int, Any, dict[str, str]]


def reply(text: str | None, finish_reason: str = "stop") -> Answer:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return 200, {"object": "chat.completion", "choices": [choice]}, {}


def blocks(prompt: str) -> list[str]:
    """The texts in fenced blocks of a prompt, an empty one as ""."""
    found = re.findall(r":\n(?:(`{3,})\n(.*?)\n\1|\(empty\))\n", prompt, re.DOTALL)
    return [text for _, text in found]


def longer(prompt: str) -> str:
    """Prefers the longer output, and the first of equally long ones."""
    _, x, y = blocks(prompt)
    return "Verdict: Y" if len(y) > len(x) else "Verdict: X"


class JudgeServer:
    """What a test knows of a running server.

    Attributes:
        url: Its address.
        requests: Bodies of the chat completions that were asked for, in order.
        headers: The headers of all requests.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Answer], models: list[str]) -> None:
        self.answer = answer
        self.models = models
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.url = ""

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]


@contextmanager
def judge_server(
    rule: Callable[[str], str | Answer] = longer,
    *,
    answer: Callable[[dict[str, Any]], Answer] | None = None,
    models: tuple[str, ...] = ("judge/model",),
) -> Iterator[JudgeServer]:
    """A server on this machine.

    Args:
        rule: What the judge replies to a prompt.
        answer: Instead: the whole answer to the body of a request.
        models: What it says that it has.
    """

    def by_rule(body: dict[str, Any]) -> Answer:
        said = rule(body["messages"][0]["content"])
        return reply(said) if isinstance(said, str) else said

    server = JudgeServer(answer or by_rule, list(models))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.headers.append(dict(self.headers))
            listed = {"object": "list", "data": [{"id": model} for model in server.models]}
            self._send(200 if self.path == "/v1/models" else 404, listed, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append(body)
                server.headers.append(dict(self.headers))
            if self.path != "/v1/chat/completions":
                self._send(404, "no such page", {})
                return
            try:
                answered = server.answer(body)
            except ConnectionAbortedError:  # the rule's way to hang up
                self.close_connection = True
                return
            self._send(*answered)

        def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


# Folders


def write_folder(folder: Path, task: str, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """A folder as `trl-r1zero eval` writes it, of rows that have what matters to a test.

    Args:
        folder: Where to.
        task: Its task.
        rows: Columns of each row besides the usual; one completion of each question, unless they
            have `example` and `completion`.
        changes: Of what evaluation.json says; `model`, `prompt` of its settings.
    """
    folder.mkdir(parents=True)
    settings = {name: changes.pop(name, name) for name in ("model", "prompt")}
    completions = 1 + max(row.get("completion", 0) for row in rows)
    facts = {
        "num_examples": len(rows) // completions,
        "num_completions": completions,
        "sampling": {"temperature": 0.0, "max_tokens": 64, "stop": []},
        "reward": "some.reward",
        "settings": {"task": task, **settings},
        "started": "2026-01-01T00:00:00+0000",
        "seconds": 1.0,
        **changes,
    }
    (folder / "evaluation.json").write_text(json.dumps(facts))
    lines = []
    for number, row in enumerate(rows):
        question = row.get("question", f"question {number}")
        usual = {
            "example": number,
            "completion": 0,
            "question": question,
            "prompt": f"Q: {question}",
            "response": row.get("answer") or "",
            "ground_truth": "",
            "length": 3,
            "truncated": False,
        }
        lines.append(json.dumps({**usual, **row}) + "\n")
    (folder / "results.jsonl").write_text("".join(lines))
    return folder


def alpaca_folder(folder: Path, pairs: list[tuple[str, str]], **changes: Any) -> Path:
    """Answers to instructions, each with the reference output of the data."""
    rows = [
        {
            "answer": answer,
            "ground_truth": reference,
            "metadata": {"dataset": "odd" if number % 2 else "even", "generator": "davinci"},
        }
        for number, (answer, reference) in enumerate(pairs)
    ]
    return write_folder(folder, "alpaca_eval", rows, **changes)


def safety_folder(folder: Path, answers: list[str], **changes: Any) -> Path:
    rows = [
        {
            "answer": answer,
            "ground_truth": "safe",
            "metadata": {"id": f"sst_{number}", "harm_area": "scams" if number % 2 else "items"},
        }
        for number, answer in enumerate(answers)
    ]
    return write_folder(folder, "simple_safety_tests", rows, **changes)


def graded_folder(folder: Path, rewards: list[float], task: str = "math", **changes: Any) -> Path:
    rows = [
        {"answer": None if reward < 0 else "4", "reward": max(reward, 0.0)} for reward in rewards
    ]
    return write_folder(folder, task, rows, **changes)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
