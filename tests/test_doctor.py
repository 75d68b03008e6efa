"""`workbench doctor`: what is well is said, what is not comes with a remedy, and nothing of it stops the rest."""

import http.server
import subprocess
import sys
import threading
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from workbench import cli, doctor


def found(check, about):
    """The finding of a check about something."""
    return {finding.about: finding for finding in check()}[about]


def test_here_everything_works_and_the_command_says_so():
    told = CliRunner().invoke(cli.app, ["doctor", "--no-network"])
    assert told.exit_code == 0, told.output
    for about in ("Python", "workbench", "packages", "versions", "memory", "JupyterLab", "panels", "studio's cache"):
        assert f"ok    {about}: " in told.output
    assert "embedded:circle: loads and says" in told.output and "model hub" not in told.output
    assert told.output.strip().endswith("Nothing keeps the workbench from working.")


def test_it_starts_without_anything_that_may_be_missing():
    code = "import sys, workbench.doctor; print([m for m in ('torch', 'numpy', 'packaging') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "version", "about", "told", "state", "do"), [
    ("plotly", "missing", "packages", "plotly is missing", "bad", "pip install --upgrade value-workbench"),
    ("plotly", "5.1", "packages", "plotly 5.1 is not ", "bad", "pip install --upgrade value-workbench"),
    ("voila", "missing", "extra app", "voila is missing", "note", 'pip install "value-workbench[app]"'),
    ("gguf", "99", "extra export", "gguf 99 is not ", "note", 'pip install "value-workbench[export]"'),
])  # fmt: skip
def test_what_is_missing_or_of_a_wrong_version_is_named(name, version, about, told, state, do, monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda asked: version if asked == name else real(asked))
    finding = found(doctor.packages, about)
    assert told in finding.found and finding.state == state and do in finding.do


def test_a_python_that_is_too_new(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 14, 0))
    finding = found(doctor.python, "Python")
    assert finding.state == "bad" and "3.11, 3.12 or 3.13" in finding.do


def test_a_kernel_of_another_environment_and_missing_extensions(monkeypatch, tmp_path):
    from jupyter_client.kernelspec import KernelSpecManager

    spec = SimpleNamespace(argv=["/elsewhere/bin/python", "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *_: [str(tmp_path)])
    lab, panels = found(doctor.jupyter, "JupyterLab"), found(doctor.jupyter, "panels")
    assert lab.state == "bad" and "/elsewhere/bin/python" in lab.found and "ipykernel install" in lab.do
    assert panels.state == "bad" and "ipywidgets and anywidget" in panels.found


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(monkeypatch):
    def broken():
        raise ImportError("libcudart.so.12:\n cannot open shared object file")

    monkeypatch.setattr(doctor, "device", broken)
    findings = {finding.about: finding for finding in doctor.examine(network=False)}
    assert findings["broken"].state == "bad" and "libcudart.so.12: cannot open" in findings["broken"].found
    assert findings["embedded:circle"].state == "good"
    told = CliRunner().invoke(cli.app, ["doctor", "--no-network"])
    assert told.exit_code == 1 and "1 of it keeps the workbench from working" in told.output


@pytest.fixture
def hub(monkeypatch):
    """Function: status -> the model hub's only finding, from a server that answers so; None: nobody listens."""
    servers = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")

    def ask(status):
        class Answers(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
        monkeypatch.setattr(doctor, "HUB", f"http://127.0.0.1:{server.server_port}")
        if status is None:
            server.server_close()
        else:
            servers.append(server)
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return found(doctor.hub, "model hub")

    yield ask
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "told", "state"), [
    (200, "answers; a token", "good"), (401, "answers (401)", "good"), (None, "does not answer", "note"),
])  # fmt: skip
def test_the_hub_is_asked_and_no_token_is_told(hub, status, told, state):
    finding = hub(status)
    assert told in finding.found and finding.state == state and "hf_secret" not in "".join(finding)


def test_offline_the_hub_is_left_alone(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(doctor, "HUB", "not even an address")
    assert found(doctor.hub, "model hub").found.startswith("not asked")


def test_a_folder_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    finding = found(doctor.caches, "studio's cache")
    assert finding.state == "note" and "not writable" in finding.found and "WORKBENCH_CACHE" in finding.do


def test_nobodys_home_is_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor.home(tmp_path / "envs" / "one") == "~/envs/one" and doctor.home(tmp_path) == "~"
    assert doctor.home(f"{tmp_path}s") == f"{tmp_path}s"
