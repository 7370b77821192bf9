"""The client of chat completions against a server of this machine: retries, refusals, order."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from judging import judge_server, reply

from trl_r1zero.generation import chat_client
from trl_r1zero.generation.chat_client import ChatClient, ChatServerError


def client(server, **settings) -> ChatClient:
    return ChatClient(server.url, **{"first_wait_seconds": 0.01, "retries": 2, **settings})


def in_turn(*answers):
    """A rule that gives these answers, one after another, and the last one again and again."""
    left = list(answers)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


# Requests


def test_what_is_asked():
    with judge_server(lambda prompt: prompt[::-1]) as server:
        asked = client(server, body={"max_tokens": 5, "structured_outputs": {"choice": ["a"]}})
        assert asked.model == "judge/model"
        said = asked.ask("abc")
        assert (said.text, said.finish_reason) == ("cba", "stop")
        assert server.requests == [
            {
                "model": "judge/model",
                "messages": [{"role": "user", "content": "abc"}],
                "max_tokens": 5,
                "structured_outputs": {"choice": ["a"]},
            }
        ]


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_the_address_with_or_without_its_version(end):
    with judge_server(lambda prompt: "yes") as server:
        server.url += end
        assert client(server).ask("?").text == "yes"


def test_another_path_is_left_as_it_is():
    assert ChatClient("https://host/openai/v1beta/", "m").url == "https://host/openai/v1beta"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "", "http://"])
def test_an_address_that_is_none(url):
    with pytest.raises(ValueError, match="expected one such as http:"):
        ChatClient(url)


@pytest.mark.parametrize("models", [(), ("a", "b/c")])
def test_the_model_must_be_named_unless_there_is_one(models):
    with judge_server(models=models) as server:
        named = ", ".join(models) or r"\(it lists none\)"
        with pytest.raises(ChatServerError, match=f"has {len(models)} models.*: {named}"):
            client(server)
        assert client(server, model="b/c").model == "b/c"


def test_the_key_is_sent_only_if_there_is_one(monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with judge_server(lambda prompt: "yes") as server:
        client(server, api_key="sk-1").ask("?")
        assert [h["Authorization"] for h in server.headers] == ["Bearer sk-1"] * 2
        server.headers.clear()
        without = client(server)
        without._is_local = False  # as for a server elsewhere
        del without._threads.session
        without.ask("?")
        assert not any("Authorization" in headers for headers in server.headers)


def test_no_proxy_to_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with judge_server(lambda prompt: "yes") as server:
        assert client(server, retries=0).ask("?").text == "yes"


def test_a_model_that_says_nothing():
    with judge_server(answer=lambda body: reply(None, "length")) as server:
        said = client(server).ask("?")
        assert (said.text, said.finish_reason) == ("", "length")


# Failures


BUSY = (429, {"error": {"message": "slow down"}}, {})


@pytest.mark.parametrize("failure", [BUSY, (500, "", {}), (503, "starting", {})])
def test_a_server_that_is_busy_is_asked_again(failure):
    with judge_server(answer=in_turn(failure, failure, reply("yes"))) as server:
        assert client(server).ask("?").text == "yes"
        assert len(server.requests) == 3


def test_it_is_not_asked_forever():
    with judge_server(answer=lambda body: BUSY) as server:
        with pytest.raises(ChatServerError, match="failed 3 times, at last: HTTP 429: slow down"):
            client(server).ask("?")
        assert len(server.requests) == 3


def test_a_connection_that_breaks_is_tried_again():
    left = [1]

    def breaks_once(body):
        if left:
            left.pop()
            raise ConnectionAbortedError
        return reply("yes")

    with judge_server(answer=breaks_once) as server:
        assert client(server).ask("?").text == "yes"
        assert len(server.requests) == 2


def test_a_server_that_is_gone():
    with judge_server() as server:
        url = server.url
    with pytest.raises(ChatServerError, match=f"{url}/v1/models failed 2 times.*no answer"):
        ChatClient(url, retries=1, first_wait_seconds=0.01)


def test_a_reply_that_takes_too_long():
    def slow(body):
        time.sleep(0.5)
        return reply("late")

    message = r"failed 1 time, at last: no answer.*timed out"
    with judge_server(answer=slow) as server, pytest.raises(ChatServerError, match=message):
        client(server, timeout_seconds=0.05, retries=0).ask("?")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_when_to_come_back(form):
    at = datetime.now(UTC) + timedelta(seconds=2)
    value = "0.3" if form == "seconds" else format_datetime(at, usegmt=True)
    with judge_server(answer=in_turn((429, "", {"Retry-After": value}), reply("yes"))) as server:
        asked = client(server)
        started = time.monotonic()
        assert asked.ask("?").text == "yes"
        assert 0.3 <= time.monotonic() - started < 30


def test_waits_grow_but_not_forever(monkeypatch):
    waits = []
    with judge_server(answer=lambda body: BUSY) as server:
        asked = client(server, retries=8, first_wait_seconds=1)
        monkeypatch.setattr(asked._ending, "wait", waits.append)
        with pytest.raises(ChatServerError):
            asked.ask("?")
    assert len(waits) == 8
    assert all(2**n <= wait <= 1.25 * 2**n for n, wait in enumerate(waits[:5]))
    assert waits[-1] == 60


def test_a_wait_of_hours_is_an_error():
    later, message = (429, "", {"Retry-After": "7200"}), "asked again in 7200 s only"
    with judge_server(answer=lambda body: later) as server:
        asked = client(server)
        with pytest.raises(ChatServerError, match=message):
            asked.ask("?")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {"error": {"message": "too many tokens"}}, {}), r"\(HTTP 400\): too many tokens"),
        ((401, {"error": "no key"}, {}), r"\(HTTP 401\): no key"),
        ((404, {"message": "no such model"}, {}), "no such model"),
        ((422, "", {}), "no reason given"),
        ((307, "", {"Location": "http://elsewhere"}), "HTTP 307"),
        ((200, "<html>", {}), "answered no JSON but '<html>'"),
        ((200, {"id": 1}, {}), "expected a chat completion"),
        ((200, {"choices": []}, {}), "expected a chat completion"),
        ((200, {"choices": [{"message": {"content": ["a"]}}]}, {}), "expected a chat completion"),
    ],
)
def test_any_other_answer_is_an_error_at_once(answer, message):
    with judge_server(answer=lambda body: answer) as server:
        with pytest.raises(ChatServerError, match=message):
            client(server).ask("?")
        assert len(server.requests) == 1


# Many


def test_replies_go_with_their_prompts():
    def uneven(prompt):
        time.sleep(0.02 * (int(prompt) % 3))
        return prompt

    with judge_server(uneven) as server:
        replies = dict(client(server, concurrency=4).ask_all([str(n) for n in range(20)]))
        assert {n: r.text for n, r in replies.items()} == {n: str(n) for n in range(20)}
        assert len(server.requests) == 20
        assert list(client(server).ask_all([])) == []


def test_so_many_at_a_time():
    running, most, lock = [0], [0], threading.Lock()

    def counted(prompt):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return "yes"

    with judge_server(counted) as server:
        list(client(server, concurrency=3).ask_all(["?"] * 12))
    assert most == [3]


def test_the_first_failure_ends_it_and_keeps_what_comes():
    """Prompt 2 is refused at once, while 0 and 1 are on their way; those are kept, 3 to 99 not
    asked."""
    refused = threading.Event()

    def rule(prompt):
        if prompt == "2":
            refused.set()
            return 400, "no", {}
        assert refused.wait(60)
        time.sleep(0.05)
        return prompt

    replies = []
    with judge_server(rule) as server:
        stream = client(server, concurrency=3).ask_all([str(n) for n in range(100)])
        with pytest.raises(ChatServerError, match="HTTP 400"):
            for position, _ in stream:
                replies.append(position)
        assert sorted(replies) == [0, 1]
        assert len(server.requests) == 3


def test_a_failure_cuts_the_waits_of_others_short():
    def rule(prompt):
        return (429, "", {"Retry-After": "60"}) if prompt == "0" else (400, "no", {})

    with judge_server(rule) as server:
        started = time.monotonic()
        with pytest.raises(ChatServerError):
            list(client(server, concurrency=2, retries=1).ask_all(["0", "1"]))
        assert time.monotonic() - started < 50  # and not the 60 that the other was told to wait


def test_nobody_listens_any_more():
    with judge_server(lambda prompt: time.sleep(0.05) or "yes") as server:
        stream = client(server, concurrency=2).ask_all(["?"] * 100)
        next(stream)
        stream.close()
        time.sleep(0.3)
        assert len(server.requests) <= 5


def test_a_bug_is_not_a_short_list(monkeypatch):
    monkeypatch.setattr(chat_client.ChatClient, "ask", lambda self, prompt: 1 / 0)
    with judge_server() as server, pytest.raises(ZeroDivisionError):
        list(client(server, concurrency=1).ask_all(["?"] * 3))
