"""Judges whose judgements are made up: one of words, and a server on localhost that plays a language model."""

import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WordJudge:
    """Counts a value as affirmed where its name stands, and an answer as fluent unless it holds a star."""

    name = "words"

    def control(self, answer, value):
        return float(value in answer)

    def fluent(self, answer):
        return "*" not in answer


class Asked:
    """What a judge's prompt asks: its id, the labels as listed, the judged texts, the value ("" for fluency)."""

    def __init__(self, prompt: str):
        self.prompt = prompt
        self.id = prompt.rsplit('{"id": "', 1)[1].split('"')[0]
        self.labels = re.findall(r'^- "(\w+)": ', prompt.rsplit("\nLabels:\n", 1)[1], re.MULTILINE)
        fence = re.search(r"between the two lines (==== \w+ ====)", prompt)[1]
        (self.line,) = re.search(rf"\n{fence}\n(.*)\n{fence}\n", prompt, re.DOTALL).groups()
        self.data = json.loads(self.line)
        self.value = (re.findall(r"^Value: ([\w-]+), that is: ", prompt, re.MULTILINE) or [""])[0]

    def reply(self, label) -> str:
        return json.dumps({"id": self.id, "label": label})


def by_words(asked: Asked) -> str:
    """What a model says that judges as `WordJudge`, and ranks by how often the value is named."""
    if "A" in asked.data:
        a, b = (asked.data[side].count(asked.value) for side in "AB")
        return asked.reply("equal" if a == b else "AB"[b > a])
    yes = asked.value in asked.data["answer"] if asked.value else "*" not in asked.data["answer"]
    return asked.reply("yes" if yes else "no")


def listen(handle) -> ThreadingHTTPServer:
    """A server on a free port of localhost that answers every POST by `handle(request)`; `http.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            handle(self)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):  # a client that went away
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    http.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    return http


class Server:
    """An OpenAI-compatible endpoint. say: what the model says to an `Asked`, a text; or a whole body (dict, list),
    (status, headers, code), "html" or "dies". bodies: requests, in order."""

    def __init__(self, say=by_words):
        self.say, self.bodies, self.lock = say, [], threading.Lock()
        self.http = listen(self.handle)
        self.url = self.http.url

    def handle(self, request) -> None:
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        with self.lock:
            self.bodies.append(body)
        said, status, headers, kind = self.say(Asked(body["messages"][0]["content"])), 200, {}, "application/json"
        if said == "dies":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        if said == "html":
            said, kind = "<html>Sign in</html>", "text/html"
        elif isinstance(said, tuple):
            status, headers, code = said
            said = {"error": {"message": "no", "code": code}}
        elif isinstance(said, str):
            said = chat(said)
        data = (said if isinstance(said, str) else json.dumps(said)).encode()
        request.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def chat(content, **more) -> dict:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return {"choices": [choice | more], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}
