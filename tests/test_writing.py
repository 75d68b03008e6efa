"""Writing pairs through an endpoint, against real servers on localhost: a scripted one, and `transformers serve`."""

import contextlib
import importlib.util
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from email.utils import formatdate
from pathlib import Path

import pandas as pd
import pytest
from spoken import listen
from typer.testing import CliRunner

from workbench import cli, writing
from workbench.audit import audit_pairs
from workbench.drafts import Record, fault_between, fault_of, likeness, the_task, unsafe
from workbench.endpoint import Endpoint, find_json, plain
from workbench.errors import WorkbenchError
from workbench.prompts import data_path, load_pairs
from workbench.writing import COLUMNS, pairs_of, write_pairs

pytest.importorskip("openai", reason="the extra `eval` is not installed")

KEY = "sk-test-Zq81+never/shown="
HONESTY = the_task("honesty", "telling the truth although a lie would be easier")
PAIR = {HONESTY.place(n)["place"] + str(HONESTY.place(n)): n for n in range(1, 101)}
EMBEDDED = Path(__file__).parents[1] / "data/embedded/circle"
SOUNDS = [a + b for a in "ba ke li mo nu pra sta vel".split() for b in "dan ket lor mig nup rist".split()]


def good(pair: int, side: str, value: str = "") -> str:
    """A text that passes, the same each time: words without sense in a frame of the right person and form."""
    place, rng = HONESTY.place(pair), random.Random(pair)
    words = [rng.choice(SOUNDS) + rng.choice(SOUNDS) for _ in range(12)]
    who = "I" if place["person"] == "first" else "She"
    verb = {"positive": "gave", "negative": "sold"}[side]
    end = "?" if place["form"] == "question" else "."
    return f"{who} {verb} {' '.join(words)}{end}"


POSITIVES = {good(pair, "positive"): pair for pair in range(1, 101)}


def chat(content, **more) -> dict:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return {"choices": [choice | more], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}


def answer(text) -> str:
    return json.dumps({"text": text})


class Server:
    """Answers well unless `plan` says otherwise.

    plan: (pair, side) -> what befalls its next requests, in order. asked, answered: requests seen, and good replies
    that went out whole. prompts: by item. most: requests under way at one time.
    """

    def __init__(self, plan=None, wait=0.0):
        self.plan, self.wait = {item: list(kinds) for item, kinds in (plan or {}).items()}, wait
        self.asked, self.answered, self.prompts, self.times, self.keys = Counter(), Counter(), {}, [], set()
        self.now = self.most = 0
        self.before = lambda item: None
        self.lock = threading.Lock()
        self.http = listen(self.handle)
        self.port, self.url = self.http.server_address[1], self.http.url

    def handle(self, request) -> None:
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        (message,) = body["messages"]
        prompt, item = message["content"], self.item(message["content"])
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.times.append(time.monotonic())
            self.asked[item] += 1
            self.prompts.setdefault(item, []).append(prompt)
            self.keys.add(request.headers["authorization"])
            kinds = self.plan.get(item)
            kind = kinds.pop(0) if kinds else "good"
        try:
            self.before(item)
            time.sleep(self.wait)
            self.reply(request, item, kind)
            if kind in ("good", "fenced", "thinking"):
                with self.lock:
                    self.answered[item] += 1
        finally:
            with self.lock:
                self.now -= 1

    def item(self, prompt: str) -> tuple[int, str]:
        if "Write its counterpart" in prompt:
            return POSITIVES[next(line for line in prompt.splitlines() if line in POSITIVES)], "negative"
        found = [n for n in range(1, 101) if (place := HONESTY.place(n)) and
                 f"Area of life: {place['domain']}. A name, if there is one, is common in {place['place']}." in prompt
                 and writing.PERSON[place["person"]] in prompt and writing.FORM[place["form"]] in prompt]  # fmt: skip
        return found[0], "positive"

    def reply(self, request, item, kind) -> None:
        text, key = good(*item), request.headers["authorization"].removeprefix("Bearer ")
        status, headers, kind_of = 200, {}, "application/json"
        if isinstance(kind, tuple):
            status, headers = kind[0], dict([kind[1]] if len(kind) > 1 else [])
            body = {"error": {"message": f"no: {key} \x1b[31m", "code": kind[2] if len(kind) > 2 else None}}
        elif kind == "slow":
            time.sleep(1.5)
            body = chat(answer(text))
        elif kind == "html":
            body, kind_of = f"<html>Sign in {key}</html>", "text/html"
        elif kind == "dies":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        elif callable(kind):
            body = kind(key)
        else:
            body = REPLIES[kind](text)
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        request.send_response(status)
        for name, value in {**headers, "Content-Type": kind_of, "Content-Length": str(len(data))}.items():
            request.send_header(name, value() if callable(value) else value)
        request.end_headers()
        request.wfile.write(data)

    def close(self):
        self.http.shutdown()
        self.http.server_close()


REPLIES = {
    "good": lambda text: chat(answer(text)),
    "fenced": lambda text: chat(f"Here you are:\n```json\n{answer(text)}\n```\nShall I go on?"),
    "thinking": lambda text: chat(f'<think>{{"text": "a draft"}} no</think>{answer(text)}'),
    "prose": lambda text: chat(text),
    "cut JSON": lambda text: chat('{"text": "I gave'),
    "wrong keys": lambda text: chat(json.dumps({"txt": text})),
    "no choices": lambda text: {"choices": [], "usage": None},
    "a list": lambda text: [1, 2],
    "null content": lambda text: chat(None),
    "declined": lambda text: chat(None, message={"role": "assistant", "content": None, "refusal": "I cannot."}),
    "cut off": lambda text: chat(answer(text), finish_reason="length"),
    "number": lambda text: chat(answer(5)),
    "nothing": lambda text: chat(answer(" ")),
    "formula": lambda text: chat(answer('=HYPERLINK("http://x","y") ' + text)),
    "plus": lambda text: chat(answer(" +" + text)),
    "full-width": lambda text: chat(answer("\uff1d" + text)),
    "escape": lambda text: chat(answer(text + "\x1b[2J")),
    "right to left": lambda text: chat(answer(text + "\u202e")),
    "surrogate": lambda text: chat('{"text": "I gave \\ud800 to her"}'),
    "markup": lambda text: chat(answer("<script>alert(1)</script> " + text)),
    "long": lambda text: chat(answer(text * 20)),
    "huge": lambda text: chat(answer("x" * 3_000_000)),
    "deep": lambda text: chat("[" * 9000 + '{"a":' * 2000),
    "named": lambda text: chat(answer(text.replace("gave", "honestly gave").replace("sold", "honestly sold"))),
    "other form": lambda text: chat(answer(text[:-1] + {".": "?", "?": "."}[text[-1]])),
}
BAD = {kind for kind in REPLIES if kind not in ("good", "fenced", "thinking")} | {"html"}


@pytest.fixture
def serve(monkeypatch):
    """Function: plan -> a running scripted server; the key is set."""
    monkeypatch.setenv("WORKBENCH_API_KEY", KEY)
    running = []

    def start(*args, **more):
        running.append(Server(*args, **more))
        return running[-1]

    yield start
    for server in running:
        with contextlib.suppress(OSError):
            server.close()


def endpoint(server, **more) -> Endpoint:
    return Endpoint(server.url, "scripted", **({"backoff": 0.02, "timeout": 20} | more))


def write(server, out, pairs=8, task=HONESTY, chat=None, **more):
    said = []
    written = write_pairs(chat or endpoint(server), task, out, pairs, **({"say": said.append} | more))
    return written, said


# -- the whole way ----------------------------------------------------------------------------------------


def test_pairs_of_one_of_the_ten_values_are_read_by_load_pairs(serve, tmp_path):
    server = serve()
    written, said = write(server, tmp_path / "new/pairs.csv", 48, the_task("Benevolence"))
    table = load_pairs(tmp_path / "new/pairs.csv")
    for path in (tmp_path / "new/pairs.csv", data_path("natural", "pairs.csv")):
        assert path.read_bytes().startswith(",".join(COLUMNS).encode() + b"\n")
    assert table["positive"].tolist() == [good(n, "positive") for n in range(1, 49)]
    assert table["negative"].tolist() == [good(n, "negative") for n in range(1, 49)]
    assert table.groupby(["person", "form"]).size().tolist() == [12] * 4
    assert table.groupby(["person", "form", "domain"]).size().eq(1).all() and table["domain"].nunique() == 12
    assert written.audit and len(written.audit.overlap) == 48 and written.refused.empty
    assert set(server.asked.values()) == {1} and len(server.asked) == 96, "one request for each text"
    assert max(server.prompts[item][0].count("\n  I gave") for item in server.prompts) > 0, "scenes taken are told"
    assert (written.usage.replies, written.usage.prompt, written.usage.completion) == (96, 9600, 960)
    assert written.usage.cost((1.0, 2.0)) == pytest.approx(0.0096 + 0.00192)
    assert said[0] == "48 positives to write" and "48 negatives to write" in said
    positives = [i for i, line in enumerate((tmp_path / "new/pairs.record.jsonl").read_text().splitlines())
                 if '"side": "positive"' in line]  # fmt: skip
    assert positives == list(range(1, 49)), "all positives come before the first negative"


def test_a_new_value_is_written_and_what_reads_it_is_said(serve, tmp_path, tiny_model):
    from workbench.probes import fit_probes

    server, out = serve(), tmp_path / "honesty.csv"
    result = CliRunner().invoke(cli.app, ["data", "write", "honesty", "--definition", "telling the truth", "--endpoint",
                                          server.url, "--model", "m", "--pairs", "12", "--out", str(out),
                                          "--price-in", "10", "--price-out", "100"])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Wrote 12 of 12 pairs" in result.output and "load_pairs knows the ten values only" in result.output
    assert "24 replies, 2,400 + 240 tokens (prompt + completion), 0.0480 at the given prices" in result.output
    assert "words shared within a pair" in result.output, "the audit is shown"
    with pytest.raises(WorkbenchError, match="the value 'honesty'"):
        load_pairs(out)
    probes = fit_probes(tiny_model(), pd.read_csv(out).assign(positive=lambda t: t["positive"].str[:40],
                                                             negative=lambda t: t["negative"].str[:40]))  # fmt: skip
    assert probes.accuracy.coords["value"].values.tolist() == ["honesty"]
    audited = CliRunner().invoke(cli.app, ["data", "audit", str(out)])
    assert audited.exit_code == 0 and "blocks: smallest / largest" in audited.output
    assert pairs_of(out)["pair"].tolist() == [str(n) for n in range(1, 13)]


def test_data_audit_prints_each_criterion_with_its_bar_and_refuses_what_is_no_set(tmp_path):
    result = CliRunner().invoke(cli.app, ["data", "audit", "natural"])
    assert result.exit_code == 0, result.output
    criteria = audit_pairs(load_pairs("natural")).criteria
    assert all(criterion in result.output for criterion in criteria["criterion"]) and "<= 0.75" in result.output
    (tmp_path / "bad.csv").write_bytes(b"value,positive\n\xff\n")
    for name, told in (("nonesuch", "no such file"), (str(tmp_path / "bad.csv"), "not UTF-8")):
        result = CliRunner().invoke(cli.app, ["data", "audit", name])
        assert result.exit_code == 1 and told in result.output


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_reply_is_asked_for_again_with_the_reason(kind, serve, tmp_path):
    server = serve({(2, "positive"): [kind], (3, "negative"): [kind]})
    written, said = write(server, tmp_path / "a.csv", 4)
    assert [good(n, "negative") for n in range(1, 5)] == written.pairs["negative"].tolist()
    reasons = [line.split("refused: ")[1] for line in said if "refused" in line]
    assert len(reasons) == 2 and {(2, "positive"), (3, "negative")} == {i for i, n in server.asked.items() if n == 2}
    first, second = server.prompts[2, "positive"]
    assert "refused" not in first and f"Your last answer was refused: {reasons[0]}.\n" in second
    assert written.usage.replies == 10


@pytest.mark.parametrize("kind", ["fenced", "thinking"])
def test_json_between_words_is_read(kind, serve, tmp_path):
    server = serve({(1, "positive"): [kind], (1, "negative"): [kind]})
    write(server, tmp_path / "a.csv", 2)
    assert set(server.asked.values()) == {1}


def test_what_is_refused_twice_is_given_up_until_asked_for_again(serve, tmp_path):
    out = tmp_path / "a.csv"
    server = serve({(2, "positive"): ["prose", "named"], (3, "negative"): ["html", "formula"]})
    written, _ = write(server, out, 4)
    assert written.pairs["pair"].tolist() == [1, 4] == pd.read_csv(out)["pair"].tolist()
    assert written.refused["pair"].tolist() == [2, 3] and "honestly" in written.refused["reason"][0]
    before = server.asked.copy()
    assert write(server, out, 4)[0].pairs.equals(written.pairs) and server.asked == before, "nothing is asked again"
    written, _ = write(server, out, 4, again=True)
    assert written.pairs["pair"].tolist() == [1, 2, 3, 4] and written.refused.empty
    assert server.asked - before == {(2, "positive"): 1, (2, "negative"): 1, (3, "positive"): 1, (3, "negative"): 1}


def test_when_nothing_passes_the_error_says_why(serve, tmp_path):
    server = serve({(n, "positive"): ["prose"] * 2 for n in range(1, 5)})
    with pytest.raises(WorkbenchError, match=r"none passed: no JSON object with text in the reply \(8 times\)"):
        write(server, tmp_path / "a.csv", 4)
    assert not (tmp_path / "a.csv").exists()


def test_two_texts_that_are_too_like_are_told_apart(serve, tmp_path):
    twin = chat(answer(good(1, "positive")))
    server = serve({(5, "positive"): [lambda key: twin]})
    _, said = write(server, tmp_path / "a.csv", 8, concurrency=1)
    told = [line for line in said if "refused" in line]
    assert told == ["pair 5, positive, refused: it is too like a text of pair 1"]


def test_the_audit_refuses_what_passed_alone_and_it_is_written_anew(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "MOST_LIKE", 2.0)
    near = good(1, "positive").replace("gave ", "gave him ")
    server = serve({(9, "positive"): [lambda key: chat(answer(near))],
                    (9, "negative"): [lambda key: chat(answer(near.replace("gave", "sold")))]})  # fmt: skip
    POSITIVES[near] = 9
    try:
        written, said = write(server, tmp_path / "a.csv", 16, concurrency=1)
    finally:
        del POSITIVES[near]
    assert "pair 9, positive, refused: by the audit: it is too like a text of pair 1" in said
    assert server.asked[9, "positive"] == server.asked[9, "negative"] == 2
    assert written.pairs["positive"].tolist() == [good(n, "positive") for n in range(1, 17)]
    assert written.audit and written.audit.near["likeness"].max() <= 0.8


# -- interruptions ----------------------------------------------------------------------------------------


def test_a_server_that_dies_costs_nothing_that_came_back(serve, tmp_path):
    calm = serve()
    write(calm, tmp_path / "calm.csv", 12)
    server, out = serve(), tmp_path / "a.csv"

    def die(item):
        if sum(server.answered.values()) >= 15:
            server.http.socket.close()
            raise ConnectionError

    server.before = die
    said = []
    with pytest.raises(WorkbenchError, match="no connection|the connection broke"):
        write(server, out, 12, chat=endpoint(server, tries=2), say=said.append)
    kept = sum(server.answered.values())
    assert kept >= 15 and not out.exists() and "the same command goes on from there" in said[-1]
    after = serve()
    write(after, out, 12)
    assert out.read_bytes() == (tmp_path / "calm.csv").read_bytes()
    assert set((server.answered + after.answered).values()) == {1}, "no text was answered twice"
    assert sum(after.asked.values()) == 24 - kept


def test_a_run_that_is_killed_goes_on_at_the_first_missing_text(serve, tmp_path):
    calm = serve()
    write(calm, tmp_path / "calm.csv", 6)
    server, out, held = serve(), tmp_path / "a.csv", threading.Event()

    def hold(item):
        if sum(server.answered.values()) >= 8:
            held.set()
            time.sleep(600)

    server.before = hold
    command = [sys.executable, "-m", "workbench", "data", "write", "honesty", "--definition", HONESTY.definition,
               "--endpoint", server.url, "--model", "scripted", "--pairs", "6", "--out", str(out),
               "--concurrency", "1"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert held.wait(300), "the ninth request did not come"
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL and not out.exists()
    record = tmp_path / "a.record.jsonl"
    assert len(record.read_bytes().splitlines()) == 1 + 8
    record.write_bytes(record.read_bytes() + b'{"pair": 9, "side": "posi')  # killed within a line
    after = serve()
    write(after, out, 6)
    assert out.read_bytes() == (tmp_path / "calm.csv").read_bytes()
    write(after, out, 6)  # the record can be read once more, and is complete
    assert set((server.answered + after.answered).values()) == {1}
    assert KEY not in process.stdout.read()


def test_more_pairs_go_on_where_fewer_ended(serve, tmp_path):
    server, out = serve(), tmp_path / "a.csv"
    few = write(server, out, 4)[0].pairs
    many = write(server, out, 9)[0].pairs
    assert many.head(4).equals(few) and len(pd.read_csv(out)) == 9 and set(server.asked.values()) == {1}


def test_a_record_of_something_else_is_refused(serve, tmp_path):
    server, out = serve(), tmp_path / "a.csv"
    write(server, out, 2)
    record = tmp_path / "a.record.jsonl"
    before = record.read_bytes(), out.read_bytes()
    for task, model, told in (
        (the_task("power"), "scripted", "value 'honesty'"),
        (HONESTY._replace(language="Hindi"), "scripted", "language 'English'"),
        (HONESTY, "another", "model 'scripted'"),
    ):
        with pytest.raises(WorkbenchError, match=f"it is of .*{told}"):
            write(server, out, 2, task, chat=Endpoint(server.url, model))
    with Record(record, {}), pytest.raises(WorkbenchError, match="another process"):
        write(server, out, 2)
    assert (record.read_bytes(), out.read_bytes()) == before
    for line in (b"{}", b"[]", b"x", b'{"pair": 1, "side": "both", "text": "a"}',
                 b'{"pair": 3, "side": "positive", "text": "=1+1"}'):  # fmt: skip
        record.write_bytes(before[0] + line + b"\n")
        with pytest.raises(WorkbenchError, match="line 7 is not as it was written"):
            write(server, out, 2)


def test_a_file_that_its_record_did_not_write_is_left_alone(serve, tmp_path):
    server, out = serve(), tmp_path / "a.csv"
    write(server, out, 2)
    out.write_text(mine := out.read_text() + "by hand\n")
    with pytest.raises(WorkbenchError, match="a file there that its record did not write"):
        write(server, out, 4)
    assert out.read_text() == mine and sum(server.asked.values()) == 4


# -- the protocol -----------------------------------------------------------------------------------------


def test_what_passes_by_itself_is_waited_for(serve, tmp_path):
    plan = {(1, "positive"): [(500,), (503,), "dies"], (2, "positive"): ["slow"], (1, "negative"): [(408,)]}
    server = serve(plan)
    chat_ = endpoint(server, timeout=1)
    written, said = write(server, tmp_path / "a.csv", 4, chat=chat_)
    assert len(written.pairs) == 4 and not [line for line in said if "refused" in line]
    assert (chat_.requests, chat_.retries, chat_.usage.replies) == (13, 5, 8)


@pytest.mark.parametrize("told", ["2", lambda: formatdate(time.time() + 3, usegmt=True)], ids=["seconds", "date"])
def test_retry_after_holds_all_requests_back(told, serve, tmp_path):
    server = serve({(1, "positive"): [(429, ("Retry-After", told))]})
    chat_ = endpoint(server)
    write(server, tmp_path / "a.csv", 3, chat=chat_, concurrency=1)
    assert server.times[1] - server.times[0] >= 1.9 and chat_.retries == 1


@pytest.mark.parametrize(
    ("answer_", "told", "do"),
    [
        ((401,), "status 401: .*no: \\[key\\]", "Set WORKBENCH_API_KEY"),
        ((404,), "status 404", "the model's name"),
        ((400,), "status 400", "Change the request"),
        ((429, ("Retry-After", "7200")), "it asks to wait 7200 s", "Wait until"),
        ((429, ("X", "y"), "insufficient_quota"), "status 429", "Wait until"),
    ],
)
def test_what_lasts_ends_the_run_at_once(answer_, told, do, serve, tmp_path):
    server = serve({(1, "positive"): [answer_]})
    with pytest.raises(WorkbenchError, match=f"(?s){told}.*What to do: .*{do}") as error:
        write(server, tmp_path / "a.csv", 4, concurrency=1)
    assert sum(server.asked.values()) == 1 and KEY not in str(error.value) and "\x1b" not in str(error.value)


def test_a_server_that_never_answers_is_left_after_its_tries(serve):
    server = serve({(1, "positive"): [(500,)] * 9})
    place = HONESTY.place(1) | {"person": writing.PERSON["first"], "form": writing.FORM["statement"]}
    text = writing.POSITIVE.format(**HONESTY._asdict(), **place, taken="", again="")
    prompt = [{"role": "user", "content": text}]
    with pytest.raises(WorkbenchError, match=r"status 500: .*after 3 tries"):
        endpoint(server, tries=3).chat(prompt)
    assert sum(server.asked.values()) == 3


def test_pace_and_concurrency_are_kept(serve, tmp_path):
    server = serve(wait=0.05)
    write(server, tmp_path / "a.csv", 6, concurrency=3)
    assert server.most == 3
    server = serve()
    began = time.monotonic()
    write(server, tmp_path / "b.csv", 6, chat=endpoint(server, per_minute=600), concurrency=6)
    assert time.monotonic() - began >= 11 * 0.1
    assert min(b - a for a, b in zip(server.times, server.times[3:], strict=False)) > 0.15


def test_the_error_that_came_first_is_the_one_raised_and_work_under_way_is_finished(serve):
    chat_, done = endpoint(serve()), []

    def work(n):
        if n == 1:
            time.sleep(0.1)
            raise WorkbenchError("the first")
        if n == 0:
            chat_._sleep(30)  # woken, and told to stop, by the error of the other
        time.sleep(0.3)
        done.append(n)

    with pytest.raises(WorkbenchError, match="the first"):
        chat_.each(work, range(50), concurrency=3)
    assert done == [2]


def test_a_reply_without_usage_is_told():
    from workbench.endpoint import Usage

    usage = Usage()
    usage.add((1_000_000, 500_000))
    usage.add(None)
    assert usage.told((3, 4)) == ("2 replies, 1,000,000 + 500,000 tokens (prompt + completion), 5.0000 at the given "
                                  "prices; 1 replies told no tokens and are not counted")  # fmt: skip


# -- the key and other untrusted things -------------------------------------------------------------------


def test_the_key_is_sent_and_stands_nowhere(serve, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-other-one")
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY)
    leaks = [lambda key: chat(answer(f"I gave him {key} and then a good deal more of it")),
             lambda key: chat(f'{{"text": "I gave him {escaped} and then a good deal more of it"}}')]  # fmt: skip
    server = serve({(1, "positive"): leaks, (2, "positive"): [(500,), "html"], (3, "positive"): [(403,)]})
    caplog.set_level(logging.DEBUG)
    outputs = []
    for more in ((), ("--again",)):
        result = CliRunner().invoke(cli.app, ["data", "write", "honesty", "--definition", "truth", "--endpoint",
                                              server.url, "--model", "m", "--pairs", "4", "--concurrency", "1",
                                              *more, "--out", str(tmp_path / "a.csv")])  # fmt: skip
        outputs.append(result.output)
    assert "status 403: " in outputs[0] and "Wrote 4 of 4" in outputs[1]
    assert server.keys == {f"Bearer {KEY}"}
    assert "[key]" in (tmp_path / "a.record.jsonl").read_text()
    texts = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(texts) == 2
    for name, text in {**texts, "output": "".join(outputs), "log": caplog.text}.items():
        assert KEY not in text and "sk-the-other-one" not in text, f"the key stands in {name}"


@pytest.mark.parametrize("key", ["sk-abc\ndef", "sk-é-0123456", 'sk-"quoted"-123'])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key, serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("WORKBENCH_API_KEY", key)
    with pytest.raises(WorkbenchError, match="The key in WORKBENCH_API_KEY") as error:
        endpoint(server)
    assert key[:6] not in str(error.value)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://a b/v1", "http://[::1/v1",
                                 "http://h:port/v1", "https://me:sk-hidden@host/v1",
                                 "https://host/v1?key=sk-hidden"])  # fmt: skip
def test_an_address_that_is_none_or_holds_a_key_is_refused(url):
    with pytest.raises(WorkbenchError, match="(?s)A chat endpoint was to be asked.*Put the key into") as error:
        Endpoint(url, "m")
    assert "sk-hidden" not in str(error.value)


def test_the_key_goes_to_no_other_machine_over_plain_http(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(WorkbenchError, match="plain http"):
        Endpoint("http://example.org/v1", "m")
    for url in ("https://example.org/v1", "http://localhost:1/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1"):
        Endpoint(url, "m")
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("WORKBENCH_API_KEY", raising=False)
    Endpoint("http://example.org/v1", "m")


def test_without_the_client_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(WorkbenchError, match=r'pip install "value-workbench\[eval\]"'):
        Endpoint("http://localhost/v1", "m")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"text": "a"}', "a"),
        ('{"text": "a"} and {"text": "b"}', "b"),
        ('{"reply": {"text": "inside"}}', "inside"),
        ('{"note": 1} {"text": "brace } in { it"} {', "brace } in { it"),
        ("{" * 30_000, None),
        ('{"text": ' * 5000, None),
        ("", None),
        ('{"Text": "a"}', None),
        ("x" * 30_000 + '{"text": "a"}', None),
    ],
)
def test_find_json(text, found):
    began = time.monotonic()
    data = find_json(text, ["text"])
    assert (data and data["text"]) == found and time.monotonic() - began < 5


def test_plain_is_one_line_that_steers_no_terminal():
    assert plain("a\x1b[2J\n\tb\u202e" + "c" * 500, 20) == "a [2J b cccccccc ..."


# -- checks of drafts -------------------------------------------------------------------------------------


def test_the_natural_set_would_pass():
    table = pd.read_csv(data_path("natural", "pairs.csv"), keep_default_na=False)
    tasks = {value: the_task(value) for value in table["value"].unique()}
    faults = [unsafe(row[side]) or fault_of(row[side], tasks[row["value"]], row["person"], row["form"])
              for _, row in table.iterrows() for side in ("positive", "negative")]  # fmt: skip
    between = [fault_between(row["positive"], row["negative"]) for _, row in table.iterrows()]
    share = [sum(map(bool, found)) / len(found) for found in (faults, between)]
    assert max(share) <= 0.03, [fault for fault in faults + between if fault]


@pytest.mark.parametrize(
    ("positive", "negative", "told"),
    [
        ("I trust the old pilot with all my maps.", "I don't trust the old pilot with all my maps.", "a negation"),
        ("She trusts the pilot with all of it.", "She doesn't trust the pilot with all of it.", "a negation"),
        ("I trust the pilot with all of it.", "i trust the pilot, with all of it!", "the other text again"),
        ("I trust the pilot with all of it.", "I trust the pilot with all of it and more than that.", "length"),
        ("I trust the pilot with all of it.", "You boil seven eggs for our breakfast today.", "shares 0%"),
        ("I trust the pilot with all of it.", "I trust the pilot with none of it.", None),
    ],
)
def test_a_negative_flips_more_than_a_not_and_keeps_words_and_length(positive, negative, told):
    found = fault_between(positive, negative)
    assert told in found if told else found is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("She told him all of it before the judge asked.", None),
        ("She told him.", "3 words"),
        ("She said honestly that she had broken the vase.", "'honestly'"),
        ("She told the powerful man all that she had seen.", "'powerful'"),
        ("She told Kwame, the fibber, all that she had seen.", "'fibber'"),
        ("I told him all of it before the judge asked.", "first person"),
        ('She said "I broke it" before the judge had asked.', None),
        ("Did she tell him before the judge had asked?", "a statement is wanted"),
    ],
)
def test_a_text_names_no_value_and_keeps_person_and_form(text, told):
    found = fault_of(text, HONESTY._replace(avoid=("fib",)), "third", "statement")
    assert told in found if told else found is None


def test_scripts_without_blanks_are_counted_by_characters():
    a, b = "她把捡到的钱包交给了警察，一分钱也没有少。", "她把捡到的钱包带回了家里，一分钱也没有交。"
    task = HONESTY._replace(language="Chinese")
    assert fault_of(a, task, "third", "statement") is None and fault_between(a, b, "Chinese") is None
    assert likeness(a, a) == 1 and likeness(a, b) < 1


def test_values_that_cannot_be_one_are_refused():
    with pytest.raises(WorkbenchError, match="Did you mean 'benevolence'"):
        the_task("benevolense")
    for name in ("=1+1", "a,b", "../x", "", "x" * 41):
        with pytest.raises(WorkbenchError):
            the_task(name, "a definition")
    assert the_task("Self Direction").value == "self-direction"
    assert the_task("Good Faith", "a\nb\x00").value == "good-faith"


# -- a server that is not ours ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    """Address of `transformers serve` with the embedded model, one process for the module."""
    if missing := [name for name in ("fastapi", "uvicorn", "pydantic") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install 'transformers[serving]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    code = "from transformers.cli.transformers import main; main()"
    with log.open("w") as told:
        process = subprocess.Popen([sys.executable, "-c", code, "serve", str(EMBEDDED), "--host", "127.0.0.1", "--port",
                                    str(port), "--device", "cpu"], stdout=told, stderr=told,
                                   env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})  # fmt: skip
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-2000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_against_transformers_serve(transformers_serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("WORKBENCH_API_KEY", raising=False)
    out = tmp_path / "a.csv"
    result = CliRunner().invoke(cli.app, ["data", "write", "benevolence", "--endpoint", transformers_serve, "--model",
                                          str(EMBEDDED), "--pairs", "4", "--out", str(out), "--max-tokens", "40",
                                          "--price-in", "1", "--price-out", "1"])  # fmt: skip
    assert result.exit_code == 1 and "none passed" in result.output and not out.exists(), result.output
    told = re.search(r"8 requests, 0 of them repeated; 8 replies, ([\d,]+) \+ ([\d,]+) tokens", result.output)
    assert told, result.output
    prompt, completion = (int(number.replace(",", "")) for number in told.groups())
    assert 8 * 100 < prompt and 8 <= completion <= 8 * 40
    events = [json.loads(line) for line in (tmp_path / "a.record.jsonl").read_text().splitlines()[1:]]
    assert len(events) == 8 and all(event["refused"] and event["side"] == "positive" for event in events)
    assert sum(event["tokens"][0] for event in events) == prompt
    assert KEY not in result.output + (tmp_path / "a.record.jsonl").read_text()
    reply = Endpoint(transformers_serve, str(EMBEDDED), max_tokens=12).chat([{"role": "user", "content": "Good day."}])
    assert reply.tokens and (reply.text or "cut off" in str(reply.problem))
    with pytest.raises(WorkbenchError, match="status 4|status 5"):
        Endpoint(transformers_serve, "no/such-model", tries=1).chat([{"role": "user", "content": "Good day."}])
