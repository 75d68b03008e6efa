"""Chat with any OpenAI-compatible endpoint: pace, retries, tokens counted, JSON found in replies.

The key comes from the environment (`WORKBENCH_API_KEY`, else `OPENAI_API_KEY`) and goes nowhere but into the
request: it is cut out of every reply and error, and is never sent over plain http to another machine. Replies
are untrusted: bounded in size and time, and whatever they hold instead of a chat completion is a `problem` of
the reply, not an exception.
"""

import ipaddress
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .errors import WorkbenchError

KEYS = ("WORKBENCH_API_KEY", "OPENAI_API_KEY")
MOST_BYTES = 1_000_000  # of one reply
MOST_TEXT = 20_000  # characters of a reply in which JSON is looked for
LONGEST_PAUSE = 600.0  # s; an endpoint that asks for more ends the run
AGAIN = {408, 409, 425, 429}  # statuses that pass by themselves, as those from 500 do
CUT = {"length": "at the limit of tokens", "content_filter": "by a content filter"}
NO_SCHEMA = {400, 422, 501}  # statuses with which endpoints refuse a field they do not know
NO_SECRET = 8  # a key shorter than this is a placeholder ("EMPTY"), which replies may well contain


class Reply(NamedTuple):
    """text: what the model said, "" where there is a problem. data: the JSON object that `ask` found in it."""

    text: str = ""
    problem: str | None = None
    tokens: tuple[int, int] | None = None  # prompt, completion; None where the endpoint did not tell
    data: dict[str, Any] | None = None


@dataclass
class Usage:
    """Replies and their tokens, as the endpoint told them."""

    replies: int = 0
    untold: int = 0
    prompt: int = 0
    completion: int = 0

    def add(self, tokens: Sequence[int] | None) -> None:
        self.replies += 1
        self.untold += tokens is None
        prompt, completion = tokens or (0, 0)
        self.prompt, self.completion = self.prompt + prompt, self.completion + completion

    def cost(self, prices: tuple[float, float]) -> float:
        """prices: of a million tokens, prompt and completion."""
        return (self.prompt * prices[0] + self.completion * prices[1]) / 1e6

    def told(self, prices: tuple[float, float] | None = None) -> str:
        line = f"{self.replies} replies, {self.prompt:,} + {self.completion:,} tokens (prompt + completion)"
        line += f", {self.cost(prices):.4f} at the given prices" if prices and any(prices) else ""
        return line + (f"; {self.untold} replies told no tokens and are not counted" if self.untold else "")


class _Broken(Exception):
    """No whole reply came back."""


class Endpoint:
    """One model behind an OpenAI-compatible address; may be used from several threads.

    url: the address before /chat/completions, such as https://api.openai.com/v1 or http://localhost:8000/v1.
    per_minute: requests, None for no limit. tries: of one request, with exponential backoff from `backoff`
    seconds and jitter, or as long as Retry-After says. timeout: seconds for one reply. temperature,
    max_tokens: sent only where given, since not all models take them.

    Raises WorkbenchError when the client library is missing and for an address or key that cannot be used.
    """

    def __init__(self, url: str, model: str, *, per_minute: float | None = None, tries: int = 6, timeout: float = 120,
                 backoff: float = 1.0, temperature: float | None = None, max_tokens: int | None = None):
        try:
            import openai
        except ImportError:
            raise WorkbenchError("A chat endpoint was to be asked.", "the package openai is not installed",
                                 do='pip install "value-workbench[eval]"') from None
        if (per_minute is not None and not per_minute > 0) or tries < 1 or not timeout > 0:
            raise WorkbenchError("A chat endpoint was to be asked.",
                                 f"{per_minute} requests per minute, {tries} tries, a timeout of {timeout} s",
                                 "numbers above 0")
        self.model, self.tries, self.timeout, self.backoff = model, tries, timeout, backoff
        self.usage, self.requests, self.retries = Usage(), 0, 0
        local = _check_address(url)
        self._key = _key(url, local)
        given = {"temperature": temperature, "max_tokens": max_tokens}
        self.options = {name: option for name, option in given.items() if option is not None}
        self._client = openai.OpenAI(base_url=url, api_key=self._key or "none", max_retries=0, timeout=timeout)
        self._schemas = True  # until it refuses one
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = self._pause = 0.0
        self._lock, self._stop = threading.Lock(), threading.Event()

    def scrub(self, text: str) -> str:
        """`text` without the key."""
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= NO_SECRET else text

    def ask(self, messages: Sequence[dict[str, str]], keys: Sequence[str],
            schema: dict[str, Any] | None = None) -> Reply:  # fmt: skip
        """`chat`, and the JSON object with `keys` in what came back; a problem where there is none."""
        reply = self.chat(messages, schema)
        if reply.problem:
            return reply
        found = find_json(reply.text, keys)
        if found is None:
            return reply._replace(problem=f"no JSON object with {', '.join(keys)} in the reply")
        # Escapes hide a key until the JSON is read, so what was read is scrubbed once more.
        return reply._replace(data=json.loads(self.scrub(json.dumps(found, ensure_ascii=False))))

    def chat(self, messages: Sequence[dict[str, str]], schema: dict[str, Any] | None = None) -> Reply:
        """One reply. Raises WorkbenchError when the endpoint refuses, or gives none within `tries`.

        schema: a JSON schema that the reply is to follow. An endpoint that refuses it and takes the same request
        without is asked without from then on: the reply is no more than likely to follow it.
        """
        import openai

        refused = not self._schemas
        for attempt in count(1):
            self._take_turn()
            with self._lock:
                self.requests += 1
                self.retries += attempt > 1
            pause = None
            try:
                reply = self._read(self._send(messages, None if refused else schema))
                with self._lock:
                    self.usage.add(reply.tokens)
                    self._schemas &= not (schema and refused)
                return reply
            except openai.APIStatusError as error:
                if error.code == "content_filter":  # one text is refused, not the run
                    return Reply(problem="a request that a content filter refused")
                if schema and not refused and error.status_code in NO_SCHEMA:
                    refused = True
                    continue
                found = f"status {error.status_code}: {plain(self.scrub(error.message))}"
                pause = _retry_after(error.response.headers)
                lasting = error.status_code < 500 and error.status_code not in AGAIN
                if lasting or error.code == "insufficient_quota" or (pause or 0) > LONGEST_PAUSE:
                    told = f"; it asks to wait {pause:.0f} s" if pause else ""
                    raise self._failed(found + told, _advice(error.status_code)) from None
            except _Broken as error:
                found = str(error)
            if attempt >= self.tries:
                raise self._failed(f"{found}, after {attempt} tries", "Look whether it runs, then go on.") from None
            backoff = min(60.0, self.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            if pause is not None:  # all threads wait: the limit is the key's, not the request's
                with self._lock:
                    self._pause = max(self._pause, time.monotonic() + pause)
            self._sleep(max(backoff, pause or 0.0))
        raise AssertionError("unreachable")

    def each(self, work: Callable[[Any], None], items: Iterable[Any], concurrency: int = 4) -> None:
        """Call `work` on each item, `concurrency` at a time. The first error ends it and is raised, once the
        replies under way have come in and been used: they are paid for.
        """
        errors: list[BaseException] = []
        self._stop.clear()

        def guarded(item: Any) -> None:
            try:
                if not self._stop.is_set():
                    work(item)
            except BaseException as error:
                errors.append(error)
                self._stop.set()  # at once, in this thread: no further request is to start

        with ThreadPoolExecutor(concurrency) as pool:
            try:
                wait([pool.submit(guarded, item) for item in items])
            except BaseException:  # the user's interrupt
                self._stop.set()
                raise
        if errors:
            raise errors[0]

    def told(self, prices: tuple[float, float] | None = None) -> str:
        """Requests and tokens so far, and what they cost."""
        return f"{self.requests} requests, {self.retries} of them repeated; {self.usage.told(prices)}"

    # -- one request ------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        if self._stop.is_set():
            raise self._stopped()
        with self._lock:
            at = max(time.monotonic(), self._next)
            self._next = at + self._gap
        while (left := max(at, self._pause) - time.monotonic()) > 0:
            self._sleep(left)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise self._stopped()

    def _send(self, messages: Sequence[dict[str, str]], schema: dict[str, Any] | None) -> bytes:
        import openai

        create = self._client.chat.completions.with_streaming_response.create
        end, body, options = time.monotonic() + self.timeout, b"", dict[str, Any](self.options)
        if schema:
            told = {"name": "reply", "schema": schema, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": told}
        try:
            # Read in pieces: the client's own timeout bounds each piece, not the whole, and nothing its length.
            with create(model=self.model, messages=list(messages), **options) as response:  # type: ignore[arg-type]
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > MOST_BYTES:
                        break
                    if time.monotonic() > end:
                        raise _Broken(f"no whole reply within {self.timeout:g} s")
        except openai.APITimeoutError:
            raise _Broken(f"no reply within {self.timeout:g} s") from None
        except openai.APIConnectionError:
            raise _Broken("no connection") from None
        except Exception as error:  # while the body is read, the transport's own errors come through
            if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
                raise _Broken(f"the connection broke ({type(error).__name__})") from None
            raise
        return body

    def _read(self, body: bytes) -> Reply:
        if len(body) > MOST_BYTES:
            return Reply(problem=f"a reply of more than {MOST_BYTES:,} bytes")
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            return Reply(problem="a reply that is no JSON")
        told = _dict(_dict(data).get("usage"))
        prompt, completion = told.get("prompt_tokens"), told.get("completion_tokens")
        counted = all(type(n) is int and 0 <= n < 1e9 for n in (prompt, completion))
        choices = _dict(data).get("choices")
        choice = _dict(choices[0]) if isinstance(choices, list) and choices else {}
        message, cut = _dict(choice.get("message")), CUT.get(str(choice.get("finish_reason")))
        text, problem = message.get("content"), None
        if not choice:
            problem = "a reply without choices"
        elif cut:
            problem = f"a reply that was cut off {cut}"
        elif not isinstance(text, str) or not text.strip():
            problem = "the model declined" if message.get("refusal") else "a reply without text"
        tokens = (int(prompt), int(completion)) if counted else None  # type: ignore[arg-type]
        return Reply("" if problem else self.scrub(str(text)), problem, tokens)

    def _failed(self, found: str, do: str) -> WorkbenchError:
        return WorkbenchError(f"{self.model!r} was asked at {self._client.base_url}.", found, do=do)

    def _stopped(self) -> WorkbenchError:
        return self._failed("the run was stopped", "Go on with the same command.")


def _dict(data: Any) -> dict[str, Any]:
    return data if isinstance(data, dict) else {}


def find_json(text: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """The last JSON object in `text` that has all `keys`: bare, between words, or in a code fence.

    What a reasoning model writes between <think> tags does not count. None where there is no such object.
    """
    text = re.sub(r"<think>.*?</think>", "", text[:MOST_TEXT], flags=re.DOTALL)
    found, at, decoder = None, text.find("{"), json.JSONDecoder()
    while at >= 0:
        try:
            data, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            data, end = None, at + 1
        if isinstance(data, dict) and set(keys) <= data.keys():
            found = data
        elif data is not None:
            end = at + 1  # the object may lie inside another
        at = text.find("{", end)
    return found


def plain(text: str, limit: int = 200) -> str:
    """`text` on one line, without what could steer a terminal, cut to `limit` characters."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return shown if len(shown) <= limit else shown[: limit - 4] + " ..."


def _check_address(url: str) -> bool:
    """Whether `url` is this machine; WorkbenchError, which does not repeat it, for what is no plain address."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        whole = parts.scheme in ("http", "https") and host and not re.search(r"[\s\x00-\x1f]", url)
    except ValueError:
        parts, host, whole = urlsplit(""), "", False
    if not whole or parts.username is not None or parts.query or parts.fragment:
        raise WorkbenchError("A chat endpoint was to be asked.",
                             "a user name or a query in its address" if whole else "an address that is none",
                             "https://HOST/v1, or http://localhost:PORT/v1", f"Put the key into {KEYS[0]}.")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key(url: str, local: bool) -> str | None:
    name = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
    if name is None:
        return None
    key = os.environ[name].strip()
    if not re.fullmatch(r"[!#-\[\]-~]+", key):
        raise WorkbenchError(f"The key in {name} was to be sent.", "characters that no key has",
                             "printable ASCII without blanks, quotes and backslashes")
    if not local and urlsplit(url).scheme == "http":
        raise WorkbenchError(f"The key in {name} was to be sent to {url}.", "plain http, which anyone on the way reads",
                             "https, or a server on localhost", f"Use https, a tunnel to localhost, or unset {name}.")
    return key


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait, given as a number or a date."""
    told = headers.get("retry-after", "")
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(told).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _advice(status: int) -> str:
    if status in (401, 403):
        return f"Set {KEYS[0]} (or {KEYS[1]}) to a key of this endpoint."
    return {404: "Check the address (it often ends in /v1) and the model's name.",
            429: "Wait until the limit is lifted, or raise it."}.get(status, "Change the request.")  # fmt: skip


__all__ = ["KEYS", "Endpoint", "Reply", "Usage", "find_json", "plain"]
