"""amatax distill --server: requests, retries, refusals, and an order that no timing reaches."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from amatax import api
from amatax.errors import AmataxError, DataError
from amatax.fitting import client
from amatax.fitting.serving import _read_answer
from amatax.recipes.gallery import find_recipe
from tests.conftest import run_amatax
from tests.fitting.family import REWARD, read_jsonl, write_prompts
from tests.fitting.server import Server, asked, refusal, running_server
from tests.test_boundaries import heavy_imports

RECIPE = find_recipe("quickstart")
Write = Callable[..., Path]
Distill = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AMATAX_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def some_prompts(tmp_path: Path) -> Write:
    return partial(write_prompts, tmp_path)


@pytest.fixture
def distill(tmp_path: Path, server: Server) -> Distill:
    def run(prompts: Path, output: str = "D.jsonl", **options: Any) -> Any:
        return api.distill(RECIPE, prompts, tmp_path / output, **{"server": server.url, "retries": 2, **options})

    return run


def test_what_is_asked_and_what_comes_back(
    distill: Distill, server: Server, some_prompts: Write, tmp_path: Path
) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    prompts = some_prompts(2, {"messages": turns, "id": 4})
    server.answer = lambda body: "cut ..." if "Hello?" in asked(body) else f"answer {body['seed']}"
    result = distill(prompts, n=2, temperature=0.7, top_p=0.9, max_new_tokens=33, seed=5)
    written = read_jsonl(tmp_path / "D.jsonl")
    assert [record.get("thing") for record in written] == ["coat", "coat", "book", "book", None, None]
    assert [record["finish"] for record in written] == ["stop"] * 4 + ["length"] * 2
    assert written[4] == {"messages": turns, "id": 4, "response": "cut ...", "finish": "length"}
    assert result.summary.tokens.max == 2
    assert (result.summary.truncated, result.summary.duplicates) == (2, 1)

    bodies = [body for _, _, body in server.requests]
    assert len(bodies) == 6 and len({body["seed"] for body in bodies}) == 6
    for path, headers, body in server.requests:
        assert path == "/v1/chat/completions"
        assert "Authorization" not in headers
        assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("family-rlhf", 0.7, 0.9, 33)
        assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (-1, 0.0, 1.0)
        assert 0 <= body["seed"] < 2**31
    distill(prompts, "other.jsonl", n=2, seed=6)
    assert not {body["seed"] for _, _, body in server.requests[6:]} & {body["seed"] for body in bodies}


def test_raw_prompts_are_completed(distill: Distill, server: Server, some_prompts: Write, tmp_path: Path) -> None:
    distill(some_prompts(1), raw=True)
    ((path, _, body),) = server.requests
    assert path == "/v1/completions"
    assert body["prompt"] == read_jsonl(tmp_path / "prompts.jsonl")[0]["prompt"] and "messages" not in body
    with pytest.raises(DataError, match="line 2: --raw takes a `prompt`"):
        distill(some_prompts(1, {"messages": [{"role": "user", "content": "a"}]}), "E.jsonl", raw=True)
    assert len(server.requests) == 1


def test_every_form_of_the_url(distill: Distill, server: Server, some_prompts: Write) -> None:
    for i, end in enumerate(("/", "/v1", "/v1/", "/v1/chat/completions")):
        distill(some_prompts(1), f"{i}.jsonl", server=server.url + end)
    assert {path for path, _, _ in server.requests} == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "not a URL"),
        ("ftp://localhost", "not a URL"),
        ("http://", "not a URL"),
        ("http://localhost:eighty", "not a URL"),
        ("http://me:secret@localhost", "more than an address"),
        ("http://localhost/?key=secret", "more than an address"),
    ],
)
def test_addresses_that_are_none(distill: Distill, some_prompts: Write, url: str, message: str) -> None:
    with pytest.raises(AmataxError, match=message) as caught:
        distill(some_prompts(1), server=url)
    assert "secret" not in caught.value.message


def test_failures_that_pass(distill: Distill, server: Server, some_prompts: Write, tmp_path: Path) -> None:
    """Overload, a crash, a proxy's page, a cut connection, silence, answers of another kind: each is tried again."""
    server.faults = [
        0,  # the first request goes alone; those after it share the rest
        (503, b"<html>overloaded</html>", {}),
        (500, b"", {}),
        (200, b"<html>proxy</html>", {}),
        None,
        (200, b'{"choices": []}', {}),
        (200, b'{"choices": [{"message": {"content": 3}}]}', {}),
        (200, b"[]", {}),
        2.0,
    ]
    result = distill(some_prompts(9), timeout=1.0, retries=8, concurrency=8)
    assert result.summary.responses == 9
    assert len(server.requests) == 9 + 8
    bodies = [json.dumps(body, sort_keys=True) for _, _, body in server.requests]
    assert len(set(bodies)) == 9  # a second attempt asks the same, seed included


def test_retry_after_is_heeded(distill: Distill, server: Server, some_prompts: Write) -> None:
    server.faults = [refusal(429, "slow down", Retry_After="2")]
    began = time.monotonic()
    distill(some_prompts(1))
    assert time.monotonic() - began >= 2  # the backoff alone waits 0.75 s at most
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ((500, b'{"error": "CUDA on fire"}', {}), "500 Internal Server Error: CUDA on fire"),
        ((200, b"nonsense", {}), "not what an OpenAI-compatible server gives"),
        (None, "Remote end closed connection"),
        (1.0, "no answer in 0.3 s"),
    ],
)
def test_failures_that_stay(distill: Distill, server: Server, some_prompts: Write, fault: Any, cause: str) -> None:
    server.faults = [fault] * 9
    with pytest.raises(AmataxError) as caught:
        distill(some_prompts(1), retries=1, timeout=0.3)
    assert cause in caught.value.message and "(2 attempts)" in caught.value.message
    assert "continues with what is done" in caught.value.hint
    assert len(server.requests) == 2


def test_nobody_listens(distill: Distill, some_prompts: Write, tmp_path: Path) -> None:
    with pytest.raises(AmataxError, match="Connection refused"):
        distill(some_prompts(1), server="http://127.0.0.1:9", retries=0)
    assert not list(tmp_path.glob("D.jsonl*"))


@pytest.mark.parametrize(("status", "hint"), [(400, "change what"), (401, "OPENAI_API_KEY"), (404, "--server-model")])
def test_refusals_are_not_tried_again(
    distill: Distill, server: Server, some_prompts: Write, status: int, hint: str
) -> None:
    """The first request goes alone: sixteen refusals would say no more."""
    server.check = lambda body: refusal(status, "no such thing here")
    with pytest.raises(AmataxError) as caught:
        distill(some_prompts(20))
    assert f"{status} " in caught.value.message and "no such thing here (line 1)" in caught.value.message
    assert hint in caught.value.hint
    assert len(server.requests) == (
        2 if status == 400 else 1
    )  # a 400 may be about the options that not all servers have


def test_a_refusal_in_the_middle_names_its_line_and_keeps_the_rest(
    distill: Distill, server: Server, some_prompts: Write, tmp_path: Path
) -> None:
    prompts = some_prompts(4, {"prompt": "too long"}, {"prompt": "after"})
    server.check = lambda body: refusal(400, "this is beyond my context") if asked(body) == "too long" else None
    with pytest.raises(AmataxError, match=r"beyond my context \(line 5\)"):
        distill(prompts, concurrency=1)
    assert len(read_jsonl(tmp_path / "D.jsonl.unfinished.jsonl")) == 1 + 4
    server.check = lambda body: None
    asked_before = len(server.requests)
    assert distill(prompts, concurrency=1).kept == 4
    assert [asked(body) for _, _, body in server.requests[asked_before:]] == ["too long", "after"]


def test_a_server_without_the_further_options(distill: Distill, server: Server, some_prompts: Write) -> None:
    server.check = lambda body: refusal(400, "unknown argument top_k") if "top_k" in body else None
    result = distill(some_prompts(4))
    assert any("refuses top_k, min_p" in note for note in result.notes)
    assert len(server.requests) == 5  # found out once


def test_reasoning_that_is_cut_out_is_refused(distill: Distill, server: Server, some_prompts: Write) -> None:
    server.message = {"reasoning_content": "Let me think."}
    with pytest.raises(AmataxError, match="cuts the reasoning out"):
        distill(some_prompts(3))


def test_which_model(distill: Distill, server: Server, some_prompts: Write) -> None:
    prompts = some_prompts(1)
    server.models = ["one", "two"]
    with pytest.raises(AmataxError, match="has 2 models: one, two") as caught:
        distill(prompts)
    assert "--server-model" in caught.value.hint
    distill(prompts, server_model="two")
    assert server.requests[-1][2]["model"] == "two"
    server.models = []
    with pytest.raises(AmataxError, match="has no model"):
        distill(prompts, "E.jsonl")


def test_a_redirect_is_not_followed(distill: Distill, server: Server, some_prompts: Write) -> None:
    server.check = lambda body: refusal(307, "", Location="http://elsewhere.example/v1")
    with pytest.raises(AmataxError, match="it redirects to http://elsewhere"):
        distill(some_prompts(1))


def test_the_key_is_sent_and_told_nobody(
    distill: Distill, server: Server, some_prompts: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-general")
    monkeypatch.setenv("AMATAX_API_KEY", "sk-secret-of-mine")
    distill(some_prompts(2))
    assert {headers["Authorization"] for _, headers, _ in server.requests} == {"Bearer sk-secret-of-mine"}
    monkeypatch.delenv("AMATAX_API_KEY")
    server.check = lambda body: refusal(401, "wrong key sk-general, " + "x" * 270 + " sk-general")
    done = run_amatax(
        *("distill", RECIPE, "--prompts", some_prompts(3), "-o", "E.jsonl", "--server", server.url), cwd=tmp_path
    )
    assert done.code == 2 and "OPENAI_API_KEY" in done.err and "wrong key ***, xxx" in done.err
    assert server.requests[-1][1]["Authorization"] == "Bearer sk-general"
    said = done.out + done.err + "".join(path.read_text() for path in tmp_path.iterdir())
    assert "sk-general" not in said and "sk-secret" not in said and "sk-g" not in said


def test_many_at_a_time_and_in_prompt_order(
    distill: Distill, server: Server, some_prompts: Write, tmp_path: Path
) -> None:
    prompts = some_prompts(24)
    server.pause = 0.1
    distill(prompts, concurrency=6)
    assert 4 <= server.most_at_once <= 6
    wanted = [record["prompt"] for record in read_jsonl(prompts)]
    assert [record["prompt"] for record in read_jsonl(tmp_path / "D.jsonl")] == wanted
    for record in read_jsonl(tmp_path / "D.jsonl"):
        assert record["response"].endswith(record["prompt"])
    server.pause, server.most_at_once = 0.0, 0
    distill(prompts, "one.jsonl", concurrency=1)
    assert server.most_at_once == 1
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "D.jsonl").read_bytes()


def test_odd_answers(distill: Distill, server: Server, some_prompts: Write, tmp_path: Path) -> None:
    """Nothing at all, and half of a surrogate pair; a server that counts no tokens."""
    server.usage = False
    texts = iter(["  ", "good \ud800 line\u2028end"])
    server.answer = lambda body: next(texts)
    result = distill(some_prompts(2), concurrency=1)
    assert (result.summary.empty, result.summary.selected, result.summary.tokens) == (1, 1, None)
    (record,) = read_jsonl(tmp_path / "D.jsonl")
    assert record["response"] == "good ? line\u2028end"


def test_killed_and_continued_is_as_uninterrupted(
    distill: Distill, server: Server, some_prompts: Write, tmp_path: Path
) -> None:
    """By the command line, without torch; kill -9 while requests are in hand."""
    prompts = some_prompts(40)
    distill(prompts, "whole.jsonl", reward=REWARD, top=30, draw=10)
    command = ["distill", RECIPE, "--prompts", prompts, "-o", "D.jsonl", "--server", server.url]
    command += ["--reward", REWARD, "--top", 30, "--draw", 10]
    server.pause = 0.15
    job = subprocess.Popen(
        [sys.executable, "-m", "amatax", *map(str, command), "--concurrency", "3"], cwd=tmp_path, env={**os.environ}
    )
    work = tmp_path / "D.jsonl.unfinished.jsonl"
    end = time.monotonic() + 60
    while not work.exists() or work.read_bytes().count(b"\n") < 8:
        assert job.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    kept = work.read_bytes().count(b"\n") - 1
    assert 7 <= kept < 40
    server.pause, before = 0.0, len(server.requests)
    assert heavy_imports({"torch", "transformers"}, [str(part) for part in command], tmp_path) == []
    # what the killed job had sent may reach the server later still, and is asked again: each is counted once
    assert len({json.dumps(body, sort_keys=True) for _, _, body in server.requests[before:]}) == 40 - kept
    assert (tmp_path / "D.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_finished_run_needs_no_server(some_prompts: Write, tmp_path: Path) -> None:
    prompts = some_prompts(2)
    with running_server() as server:
        api.distill(RECIPE, prompts, tmp_path / "D.jsonl", server=server.url)
    assert api.distill(RECIPE, prompts, tmp_path / "D.jsonl", server=server.url, retries=0).already


def test_ctrl_c_does_not_wait_for_answers(server: Server, some_prompts: Write, tmp_path: Path) -> None:
    command = ["distill", RECIPE, "--prompts", some_prompts(9), "-o", "D.jsonl", "--server", server.url]
    server.faults = [0, *[30.0] * 8]
    job = subprocess.Popen([sys.executable, "-m", "amatax", *map(str, command)], cwd=tmp_path, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while server.at_once < 8:
        assert job.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=10)
    assert job.returncode == 130
    assert b"the same command continues" in err


@pytest.mark.parametrize(
    ("reason", "finish"), [("stop", "stop"), (None, "stop"), ("length", "length"), ("content_filter", "length")]
)
def test_only_what_ended_by_itself_is_whole(reason: str | None, finish: str) -> None:
    answer = {"choices": [{"finish_reason": reason, "message": {"content": "partial"}}]}
    assert _read_answer(answer, 0, raw=False).finish == finish


def test_a_server_that_drips_is_given_up() -> None:
    """A byte now and then keeps a socket's own timeout from ever passing."""
    listener, done = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not done.wait(0.05):
                connection.sendall(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    patience = client.Server(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=0, timeout=0.5)
    with pytest.raises(AmataxError, match=r"no answer in 0\.5 s"):
        client.ask(patience, "/v1/models", None, threading.Event())
    done.set()
    thread.join()
    listener.close()
