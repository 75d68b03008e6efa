"""The studio's page: what is prepared once, a kernel for each visitor, and what a visitor cannot do."""

import http.client
import http.cookiejar
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from workbench import app_commands, cli, prompts
from workbench.app import prepared
from workbench.errors import WorkbenchError

WAIT = 300.0  # seconds; a bound for busy machines
LIGHT = """
import os
import ipywidgets as w
prompt, told, pid = w.Textarea(description="prompt"), w.Label(), w.Label(f"process {os.getpid()}")
prompt.observe(lambda change: setattr(told, "value", f"{len(change['new'])} characters"), "value")
w.VBox([prompt, told, pid])
"""
SERVE = """
import sys
from pathlib import Path
sys.modules.setdefault("rfc3987_syntax", None)
from workbench.app import visits
from workbench.app.server import serve
for setting in sys.argv[2].split():
    name, value = setting.split("=")
    setattr(visits, name, float(value))
sys.exit(serve(Path(sys.argv[1]), sys.argv[3:]))
"""
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


# --- a server, and visitors ---


class Served:
    """A running server of one notebook."""

    def __init__(self, process: subprocess.Popen, log: Path, port: int):
        self.process, self.log, self.port, self.url = process, log, port, f"http://127.0.0.1:{port}"

    def until(self, words: str) -> str:
        """The log as soon as it holds these words."""
        end = time.monotonic() + WAIT
        while words not in (told := self.log.read_text(encoding="utf-8", errors="replace")):
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{words!r} was not said (exit code {self.process.poll()}):\n{told}")
            time.sleep(0.05)
        return told

    def kernels(self) -> list[int]:
        """Processes of kernels."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # or a zombie
                found += [child.pid] if "ipykernel_launcher" in " ".join(child.cmdline()) else []
        return found


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Function: cells, options, timings of `visits` -> a server that is ready for visitors; all are stopped at last."""
    started: list[Served] = []

    def start(*cells: str, options: str = "", timings: str = "", ready: bool = True, env: Any = None) -> Served:
        folder = tmp_path_factory.mktemp("app")
        notebook = new_notebook(cells=[new_markdown_cell("# Title\n\nWhat it is."), *map(new_code_cell, cells)])
        notebook.metadata.update(KERNEL)
        nbformat.write(notebook, folder / "app.ipynb")
        (folder / "secret.png").write_text("not for visitors")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        given = ["--Voila.ip=127.0.0.1", f"--Voila.port={port}", "--no-browser", *options.split()]
        command = [sys.executable, "-c", SERVE, str(folder / "app.ipynb"), timings, *given]
        with (folder / "log").open("w") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ | (env or {}))
        started.append(served := Served(process, folder / "log", port))
        if ready:
            served.until("Ready: ")
        return served

    yield start
    for served in started:
        if served.process.poll() is None:
            served.process.terminate()
            served.process.wait(60)


@pytest.fixture(scope="module")
def server(serve):
    """A server with two places for visitors."""
    return serve(LIGHT, options="--StudioServer.visitors=2")


class Visitor:
    """A browser without a screen: its cookies, its page, its kernel."""

    def __init__(self, served: Served, path: str = "/"):
        self.served = served
        self.cookies = http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))
        self.page = self.get(path)[1]
        self.headers = self.answer.headers
        config = re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', self.page, re.DOTALL)
        assert config, self.page[:2000]
        self.kernel = json.loads(config[1])["kernelId"]

    def get(self, path: str) -> tuple[int, str]:
        headers = {"Referer": f"{self.served.url}/"}
        with self.opener.open(urllib.request.Request(self.served.url + path, headers=headers), timeout=WAIT) as answer:
            self.answer = answer
            return answer.status, answer.read().decode()

    def leave(self) -> int:
        """As the page does when its tab is closed."""
        xsrf = {cookie.name: cookie.value for cookie in self.cookies}["_xsrf"]
        data = urllib.parse.urlencode({"_xsrf": xsrf}).encode()
        with self.opener.open(f"{self.served.url}/voila/api/shutdown/{self.kernel}", data, timeout=WAIT) as answer:
            return answer.status


def status(served: Served, path: str, **given: Any) -> tuple[int, str]:
    """What somebody without a page is answered."""
    request = urllib.request.Request(served.url + path, headers={"Referer": f"{served.url}/"}, **given)
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def eventually(true, what: str) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


class Channel:
    """A websocket to a visitor's kernel, in the protocol of old browsers (JSON) or of new ones (v1, binary)."""

    def __init__(self, visitor: Visitor, v1: bool = False):
        import websockets.sync.client as ws

        address = f"ws://127.0.0.1:{visitor.served.port}/api/kernels/{visitor.kernel}/channels?session_id=s"
        protocol = "v1.kernel.websocket.jupyter.org"
        self.v1 = v1
        self.open = ExitStack()
        given: Any = {"subprotocols": [protocol] if v1 else None, "open_timeout": WAIT, "max_size": None}
        self.socket = self.open.enter_context(ws.connect(address, **given))
        assert (self.socket.subprotocol == protocol) is v1

    def close(self) -> None:
        self.open.close()

    def send(self, kind: str, content: dict[str, Any], channel: str = "shell") -> str:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "username": "", "session": "s", "version": "5.3",
                  "date": "2025-01-01T00:00:00Z"}  # fmt: skip
        if self.v1:
            from jupyter_server.services.kernels.connection.base import serialize_msg_to_ws_v1

            parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
            self.socket.send(serialize_msg_to_ws_v1(parts, channel))
        else:
            told = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": channel}
            self.socket.send(json.dumps({**told, "buffers": []}))
        return header["msg_id"]

    def answers(self, to: str, kind: str) -> list[dict]:
        """All messages up to one of this kind that answers `to`."""
        return self.until(lambda told: (told["header"]["msg_type"], told["parent_header"].get("msg_id")) == (kind, to))

    def until(self, wanted: Callable[[dict], bool]) -> list[dict]:
        """All messages up to one that is wanted."""
        from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1

        seen = []
        while True:
            told = self.socket.recv(timeout=WAIT)
            if self.v1:
                assert isinstance(told, bytes)
                _, parts = deserialize_msg_from_ws_v1(told)
                names = ("header", "parent_header", "metadata", "content")
                message = dict(zip(names, map(json.loads, parts[:4]), strict=True))
            else:
                message = json.loads(told if isinstance(told, str) else told[told.index(b"{") :].decode())
            seen.append(message)
            if wanted(message):
                return seen


# --- visitors do not mix, and there are no more than there are places ---


def test_each_visitor_has_a_kernel_and_the_third_is_refused_until_somebody_leaves(server):
    first, second = Visitor(server), Visitor(server)
    assert first.kernel != second.kernel
    pids = [re.search(r"process (\d+)", visitor.page) for visitor in (first, second)]
    assert pids[0] and pids[1] and pids[0][1] != pids[1][1]
    assert {int(pid[1]) for pid in pids if pid} <= set(server.kernels()), "the widgets live in those kernels"

    request = urllib.request.Request(server.url)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=WAIT)
    assert refused.value.code == 503 and refused.value.headers["Retry-After"] == "10"
    page = refused.value.read().decode()
    assert "All places are taken" in page and "2 people use" in " ".join(page.split()) and 'content="10"' in page
    assert len(server.kernels()) == 2, "nobody got a third kernel"

    assert status(server, f"/voila/api/shutdown/{first.kernel}", data=b"")[0] == 403, "only its own page ends a visit"
    assert first.leave() == 204
    third = Visitor(server)
    assert third.kernel not in (first.kernel, second.kernel)
    assert third.get(f"/api/kernels/{third.kernel}")[0] == 200
    assert status(server, f"/api/kernels/{first.kernel}")[0] == 404
    assert second.leave() == third.leave() == 204


def test_a_reload_finds_the_place_it_has_just_given_up(serve):
    served = serve(LIGHT, options="--StudioServer.visitors=1")
    visitor = Visitor(served)
    for _ in range(2):
        visitor.leave()
        visitor = Visitor(served)  # at once
    assert "1 person uses" in " ".join(status(served, "/")[1].split())


@pytest.mark.parametrize("connected", [False, True])
def test_whoever_is_not_there_gives_the_place_back(serve, connected):
    served = serve(LIGHT, options="--StudioServer.visitors=1", timings="LOADING=1 ABSENT=1 SWEEP=.2")
    visitor = Visitor(served)
    if connected:
        channel = Channel(visitor)
        channel.answers(channel.send("kernel_info_request", {}), "kernel_info_reply")
        time.sleep(2)
        assert visitor.get(f"/api/kernels/{visitor.kernel}")[0] == 200, "a connected page stays"
        channel.close()
    eventually(lambda: status(served, f"/api/kernels/{visitor.kernel}")[0] == 404, "the kernel lives on")
    assert Visitor(served).kernel != visitor.kernel


def test_a_forgotten_tab_is_ended_and_told(serve):
    import websockets.exceptions

    served = serve(LIGHT, options="--StudioServer.visitors=1 --StudioServer.idle=0.05", timings="SWEEP=.2")
    visitor = Visitor(served)
    channel = Channel(visitor)
    with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
        channel.answers("nothing", "of the kind")
    assert closed.value.rcvd and closed.value.rcvd.reason == "the visit is over"
    assert status(served, f"/api/kernels/{visitor.kernel}")[0] == 404


def test_a_visit_ends_with_its_kernel_and_nobody_is_given_a_dead_one(serve):
    served = serve(LIGHT, options="--StudioServer.visitors=3", timings="SWEEP=.2")
    (spare,) = served.kernels()
    os.kill(spare, signal.SIGKILL)
    eventually(lambda: set(served.kernels()) - {spare}, "the spare kernel was not replaced")
    visitor = Visitor(served)
    own = int(re.search(r"process (\d+)", visitor.page)[1])  # type: ignore[index]
    assert own != spare
    os.kill(own, signal.SIGKILL)
    eventually(lambda: status(served, f"/api/kernels/{visitor.kernel}")[0] == 404, "a dead kernel counts as alive")
    again = Visitor(served)
    assert again.get(f"/api/kernels/{again.kernel}")[0] == 200


def test_a_page_that_fails_says_so_without_details_and_takes_no_place(serve):
    counting = """
import os, pathlib
runs = pathlib.Path("runs")
runs.write_text((runs.read_text() if runs.exists() else "") + "x")
assert runs.read_text() not in ("xx", "xxx"), "in secret/place"
if runs.read_text() == "xxxx":
    os._exit(1)
"""
    served = serve(counting + LIGHT, options="--StudioServer.visitors=1 --StudioServer.ahead=0")
    Visitor(served).leave()
    for _ in range(3):  # two exceptions and a death
        code, page = status(served, "/")
        assert code == 200 and page.count('page.over("failed")') == 1 and page.rstrip().endswith("</html>")
        assert "secret" not in page and "Traceback" not in page
    assert "in secret/place" in served.log.read_text(), "whoever runs the server can read the reason"
    assert Visitor(served).kernel


def test_the_page_comes_while_it_is_made(serve):
    served = serve(LIGHT, "import time; time.sleep(3)", options="--StudioServer.ahead=0 --StudioServer.visitors=2")
    Visitor(served)  # the first kernel is there
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=WAIT)
    connection.request("GET", "/")
    answer, began, seen = connection.getresponse(), time.monotonic(), b""
    while b"is on its way" not in seen:
        seen += answer.read1()
    early, seen = time.monotonic() - began, seen + answer.read()
    assert b"jupyter-config-data" in seen and time.monotonic() - began > early + 2
    connection.close()


def test_whoever_does_not_wait_for_the_page_takes_no_place(serve):
    served = serve(LIGHT, "import time; time.sleep(3)", options="--StudioServer.ahead=0 --StudioServer.visitors=1",
                   timings="SWEEP=.2")  # fmt: skip
    Visitor(served).leave()
    with socket.create_connection(("127.0.0.1", served.port)) as impatient:
        impatient.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in impatient.recv(2000)
    assert Visitor(served).kernel
    eventually(lambda: len(served.kernels()) == 1, "the kernel of the one who left lives on")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_leaves_no_kernel(serve, how, interruptible):
    served = serve(LIGHT, options="--StudioServer.visitors=3")
    Visitor(served)
    eventually(lambda: len(served.kernels()) == 2, "no spare kernel")
    pids = served.kernels()
    served.process.send_signal(how)
    assert served.process.wait(60) == 0
    eventually(lambda: not any(map(psutil.pid_exists, pids)), "a kernel outlived the server")
    assert "Traceback" not in served.log.read_text()


def test_memory_says_how_many(serve):
    served = serve(LIGHT)
    told = re.search(r"Up to (\d+) visitors at a time, about ([\d.]+) GB \(([\d.]+) GB each", served.log.read_text())
    assert told
    places, total, each = int(told[1]), float(told[2]), float(told[3])
    (kernel,) = served.kernels()[:1]
    assert each == pytest.approx(psutil.Process(kernel).memory_info().rss / 1e9, abs=0.03)
    assert 1 <= places <= 10 * (os.cpu_count() or 1) and total == pytest.approx(places * each, abs=0.1 + 0.005 * places)


def test_a_notebook_that_fails_is_told_at_the_start(serve):
    served = serve("from workbench.errors import WorkbenchError\nraise WorkbenchError('This was asked.', 'nothing')",
                   ready=False)  # fmt: skip
    assert served.process.wait(WAIT) == 1
    told = served.log.read_text()
    assert "The studio could not be started.\nWorkbenchError: This was asked.\nFound: nothing" in told
    assert "Ready" not in told


# --- what a visitor cannot do ---


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("channel", ["shell", "control"])
def test_code_of_a_visitor_is_not_run(server, tmp_path, v1, channel):
    visitor = Visitor(server)
    socket = Channel(visitor, v1)
    socket.answers(socket.send("kernel_info_request", {}), "kernel_info_reply")
    code = {"code": f"open({str(tmp_path / 'ran')!r}, 'w').write('x')", "silent": False, "store_history": True,
            "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}  # fmt: skip
    for kind, content in [
        ("execute_request", code),
        ("complete_request", {"code": "os.", "cursor_pos": 3}),
        ("inspect_request", {"code": "os", "cursor_pos": 2, "detail_level": 0}),
        ("history_request", {"hist_access_type": "tail", "n": 5, "output": False, "raw": True}),
        ("debug_request", {"type": "request", "seq": 1, "command": "evaluate", "arguments": {"expression": "1"}}),
        ("shutdown_request", {"restart": False}),
    ]:
        socket.send(kind, content, channel)
    asked = socket.send("comm_info_request", {"target_name": "jupyter.widget"})
    seen = socket.answers(asked, "comm_info_reply")  # comes after whatever was asked before
    kinds = {message["header"]["msg_type"] for message in seen}
    assert kinds <= {"status", "comm_info_reply", "kernel_info_reply"}, kinds
    assert not (tmp_path / "ran").exists()
    assert seen[-1]["content"]["comms"], "widgets do answer"
    socket.close()
    visitor.leave()


def test_another_sites_page_cannot_connect(server):
    import websockets.exceptions
    import websockets.sync.client as ws

    visitor = Visitor(server)
    address = f"ws://127.0.0.1:{server.port}/api/kernels/{visitor.kernel}/channels"
    with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
        with ws.connect(address, origin="http://example.org", open_timeout=WAIT):  # type: ignore[arg-type]
            pass
    request = urllib.request.Request(server.url, headers={"Host": "example.org"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=WAIT)
    visitor.leave()


@pytest.mark.parametrize(
    "path",
    ["/other.ipynb", "/app.ipynb", "/voila/render/app.ipynb", "/voila/tree", "/voila/files/secret.png", "/secret.png",
     "/voila/api/contents", "/api/contents", "/api/kernels", "/api/sessions", "/api/terminals", "/tree", "/lab",
     "/voila/static", "/voila/static/", "/voila/labextensions/", "/voila/templates/lab/static/",
     "/voila/templates/lab/static/../../../../../../etc/passwd", "/voila/templates/../static/x",
     "/voila/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/voila/execution/x", "/voila/query/x"],
)  # fmt: skip
def test_nothing_else_is_served(server, path):
    code, said = status(server, path)
    assert code in (403, 404), (code, said[:300])
    assert "secret" not in said and "root:" not in said and "not for visitors" not in said


def test_the_page_and_its_files_ask_no_other_host(server):
    visitor = Visitor(server)
    assert re.search(r"<main[^>]*>.*What it is\.", visitor.page, re.DOTALL)
    assert "import ipywidgets" not in visitor.page, "code is not shown"
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#]+)""", visitor.page)
    links = [link for link in links if not link.startswith("data:")]
    assert len(links) >= 5 and all(re.match(r"/voila/[^/]", link) for link in links)
    assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", visitor.page)
    for link in links:
        code, text = visitor.get(link)
        assert code == 200
        if ".css" in link:
            assert not re.findall(r"(?:@import[^;]*|url\(\s*['\"]?)(?:https?:)?//", text), link
    policy = visitor.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "connect-src 'self'" in policy and "//" not in policy
    visitor.leave()


HOSTILE = [
    "x" * 10_000,
    "\N{ZERO WIDTH JOINER}" * 10_000,
    "<script>alert(1)</script></textarea><img src=x onerror=alert(1)>",
    "\x00\x01\x1b[31m\u202e\x7f",
    "{{7*7}}{% raw %}",
    "lone \ud800 and \udc00 surrogates",
]


@pytest.mark.parametrize("v1", [False, True])
def test_hostile_prompts_harm_neither_kernel_nor_server(server, v1):
    visitor = Visitor(server)
    channel = Channel(visitor, v1)
    comms = channel.answers(channel.send("comm_info_request", {}), "comm_info_reply")[-1]["content"]["comms"]
    for text in [*HOSTILE, "harmless"]:
        for comm in comms:  # one of them is the prompt's
            update = {"method": "update", "state": {"value": text}, "buffer_paths": []}
            channel.send("comm_msg", {"comm_id": comm, "data": update})
        if "surrogates" not in text:  # with those alone nothing happens: no message can carry them back
            said = f"{len(text)} characters"
            channel.until(lambda told, said=said: said in json.dumps(told["content"]))
    channel.close()
    assert visitor.get(f"/api/kernels/{visitor.kernel}")[0] == 200
    assert visitor.leave() == 204
    Visitor(server).leave()


def test_a_token_is_asked_for_and_never_told(serve):
    served = serve(LIGHT, options="--token=wordofmouth --StudioServer.visitors=1")
    assert status(served, "/")[1].count("jupyter-config-data") == 0, "the page of a login, not of the studio"
    assert Visitor(served, "/?token=wordofmouth").kernel
    assert status(served, "/api/kernels/x?token=wordofmouth")[0] == 404
    assert "wordofmouth" not in served.log.read_text()
    refused = serve(LIGHT, options="--token", ready=False)
    assert refused.process.wait(WAIT) == 1 and "Set JUPYTER_TOKEN" in refused.log.read_text()
    quiet = serve(LIGHT, options="--token", env={"JUPYTER_TOKEN": "wordofmouth"})
    assert "wordofmouth" not in quiet.log.read_text()
    (kernel,) = quiet.kernels()[:1]
    assert "JUPYTER_TOKEN" not in psutil.Process(kernel).environ()
    assert psutil.Process(kernel).environ()["WORKBENCH_SERVED"] == "1"


# --- what is prepared once ---


@pytest.fixture
def few(monkeypatch):
    """Six pairs, ten questions and ten prompts instead of all."""
    whole = {name: getattr(prompts, name) for name in ("load_pairs", "load_questions", "load_unrelated")}

    def some(name, count, by):
        return lambda data: whole[name](data).groupby(by, sort=False).head(count).reset_index(drop=True)

    monkeypatch.setattr(prompts, "load_pairs", some("load_pairs", 6, "value"))
    monkeypatch.setattr(prompts, "load_questions", some("load_questions", 6, "value"))
    monkeypatch.setattr(prompts, "load_unrelated", some("load_unrelated", 8, "kind"))


def test_what_is_prepared_is_read_the_second_time(tiny_folder, few, tmp_path):
    from workbench.probes import fit_probes
    from workbench.steering.caa import CAA

    folder, said = tiny_folder(), []
    assert not prepared.is_prepared(folder, tmp_path)
    first = prepared.prepare(folder, tmp_path, said.append)
    assert len(said) == 4 and "pairs of texts" in said[0]
    assert prepared.is_prepared(folder, tmp_path) and prepared.is_prepared(str(folder), tmp_path)
    said.clear()
    again = prepared.prepare(folder, tmp_path, said.append)
    assert said == [] and again.folder == first.folder and again.notes == first.notes
    assert "values at 3 layers" in repr(again)
    np.testing.assert_array_equal(again.probes.weight, first.probes.weight)
    assert again.gate is not None and first.gate is not None
    np.testing.assert_array_equal(again.gate.weight, first.gate.weight)
    assert again.neurons.keys() == first.neurons.keys()

    pairs = prompts.that_fit(again.model, prompts.load_pairs("natural"), ["positive", "negative"])[0]
    afresh = fit_probes(again.model, pairs)
    np.testing.assert_allclose(again.probes.weight, afresh.weight, atol=1e-5)
    difference = afresh.activations.fit("mean_difference")  # type: ignore[union-attr]
    np.testing.assert_allclose(again.differences.weight, difference.weight, atol=1e-6)
    assert CAA(again.differences, again.probes.values[0], layers=[1])
    text = "Should Mira sell the old house?"
    assert 0 <= float(again.gate.scores([text])[0]) <= 1, "a gate that was read can score"


def test_what_is_damaged_incomplete_or_of_another_model_is_fitted_anew(tiny_folder, few, tmp_path, monkeypatch):
    said: list[str] = []
    first = prepared.prepare(tiny_folder(), tmp_path, said.append)
    for spoil in (
        lambda: (first.folder / "probes").write_bytes(b"nonsense"),
        lambda: (first.folder / "gate").unlink(),
        lambda: (first.folder / "prepared.json").write_text("{"),
    ):
        spoil()
        said.clear()
        again = prepared.prepare(tiny_folder(), tmp_path, said.append)
        assert len(said) == 4 and again.folder == first.folder
        np.testing.assert_array_equal(again.probes.weight, first.probes.weight)
    other = prepared.prepare(tiny_folder("qwen2"), tmp_path, said.append)
    assert other.folder != first.folder and other.model.fingerprint != first.model.fingerprint
    monkeypatch.setattr(prepared, "version", lambda: "9.9")
    assert not prepared.is_prepared(tiny_folder(), tmp_path)
    said.clear()
    assert prepared.prepare(tiny_folder(), tmp_path, said.append).folder != first.folder and said


def test_a_model_that_was_written_again_is_not_taken_for_prepared(tiny_folder, tmp_path):
    folder = tiny_folder()
    files = prepared.stamp(folder)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/prepared.json").write_text(json.dumps({"version": prepared.version(), "files": files}))
    assert prepared.is_prepared(folder, tmp_path)
    files[0][1] += 1
    (tmp_path / "x/prepared.json").write_text(json.dumps({"version": prepared.version(), "files": files}))
    assert not prepared.is_prepared(folder, tmp_path)
    assert not prepared.is_prepared("owner/name", tmp_path) and not prepared.is_prepared("embedded:moon", tmp_path)


def test_a_cache_that_cannot_be_written_is_said(tiny_folder, few, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkbenchError, match="(?s)was to be kept.*Set WORKBENCH_CACHE"):
        prepared.prepare(tiny_folder(), tmp_path / "file")


def test_the_cache_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.delenv("WORKBENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepared.cache_folder() == tmp_path / "value-workbench/studio"
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "own"))
    assert prepared.cache_folder() == tmp_path / "own/studio"


def test_the_studio_is_prepared_for_craftgpt(craftgpt, reference, few, tmp_path):
    found = prepared.prepare(reference / "models/craftgpt", tmp_path)
    assert len(found.probes.values) == 10 and found.probes.layers == list(range(craftgpt.n_layers))
    assert any("do not fit the context of 64 tokens" in note for note in found.notes)


# --- the command ---


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What `workbench app` asks the server for: options, and the notebook."""
    from workbench.app import server as module

    calls: list[Any] = []
    monkeypatch.setattr(prepared, "is_prepared", lambda name: True)

    def serve(path: Path, options: list[str]) -> int:
        calls.append((nbformat.read(path, as_version=4), options))
        return 0

    monkeypatch.setattr(module, "serve", serve)
    monkeypatch.chdir(tmp_path)
    return calls


def test_the_command_serves_the_notebook_on_this_machine_only(called):
    result = CliRunner().invoke(cli.app, ["app", "--no-browser", "--visitors", "4", "--port", "9000"])
    assert result.exit_code == 0 and result.output == "", result.output
    ((notebook, options),) = called
    assert 'MODEL = "embedded:circle"' in notebook.cells[1].source
    assert {"--Voila.ip=127.0.0.1", "--Voila.port=9000", "--StudioServer.visitors=4", "--StudioServer.idle=20.0",
            "--StudioServer.ahead=1", "--no-browser"} == set(options)  # fmt: skip


def test_another_address_is_told_and_another_model_is_named_whole(called, tmp_path):
    (tmp_path / 'my "model"').mkdir()
    result = CliRunner().invoke(cli.app, ["app", "--ip", "0.0.0.0", "--model", 'my "model"'])
    assert result.exit_code == 0 and "Anybody who reaches 0.0.0.0 at port 8866 can use the studio" in result.output
    ((notebook, _),) = called
    whole = json.dumps(str(tmp_path / 'my "model"'))
    assert f"MODEL = {whole}" in notebook.cells[1].source


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("", False), ("0.0.0.0", False), ("10.0.0.1", False),
     ("example.org", False)],
)  # fmt: skip
def test_which_addresses_are_this_machines_own(address, local):
    from workbench.app.server import is_local

    assert is_local(address) is local


def test_a_model_is_prepared_before_anybody_is_served(called, monkeypatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(prepared, "is_prepared", lambda name: False)
    codes = iter([0, 1])

    def run(command):
        commands.append(command)
        assert len(called) == len(commands) - 1, "served before it was prepared"
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(app_commands.subprocess, "run", run)
    assert CliRunner().invoke(cli.app, ["app"]).exit_code == 0
    assert commands[0][1:] == ["-m", "workbench", "app", "--prepare", "--model", "embedded:circle"]
    assert CliRunner().invoke(cli.app, ["app"]).exit_code == 1 and len(called) == 1


def test_without_voila_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(app_commands, "find_spec", lambda name: None)
    result = CliRunner().invoke(cli.app, ["app"])
    assert result.exit_code == 1
    assert "voila is not installed" in result.output and 'pip install "value-workbench[app]"' in result.output


def test_a_model_that_is_none_is_told_by_the_command(tmp_path):
    result = CliRunner().invoke(cli.app, ["app", "--prepare", "--model", str(tmp_path)])
    assert result.exit_code == 1 and "no config.json in its folder" in result.output
