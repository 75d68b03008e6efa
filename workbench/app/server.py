"""Voila for a lecture hall: one notebook, a limited number of visitors, a page that asks no other host.

What a visitor can do: move widgets. What is served: the notebook's page, the scripts and styles it needs, and for each
page the connection to its own kernel, whose id nobody else is told. No file, no folder, no other notebook; kernels
hear the messages of widgets only (`visits.WIDGETS`), so that nobody can have code run.
"""

import asyncio
import logging
import os
import sys
import threading
import webbrowser
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from posixpath import normpath
from typing import Any

import psutil
from jupyter_server.base.handlers import FileFindHandler
from jupyter_server.services.kernels.handlers import KernelHandler
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, authenticated
from traitlets import Float, Integer, default
from voila.app import Voila
from voila.handler import BaseVoilaHandler
from voila.shutdown_kernel_handler import VoilaShutdownKernelHandler
from voila.static_file_handler import MultiStaticFileHandler, TemplateStaticFileHandler
from voila.tornado.handler import TornadoVoilaHandler
from voila.tornado.kernel_websocket_handler import VoilaKernelWebsocketHandler

from .visits import WIDGETS, Kernels, Visit

PAGE = Path(__file__).with_name("page")
EXTENSIONS = ["@voila-dashboards/widgets-manager8", "@jupyter-widgets/jupyterlab-manager", "anywidget"]
RELOAD = 10  # seconds after which the page "all places are taken" looks again
PATIENCE = 3.0  # seconds that a newcomer waits for a place: somebody who reloads has just given up their own
SHARE = 0.5  # of the free memory that visitors may take where nobody says how many they may be
CROWD = 10  # and for each processor
HEADERS = {
    # Browsers themselves then ask nobody else. plotly.js and widgets are scripts that come through the websocket.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob:; "
    "worker-src 'self' blob:; form-action 'self'; base-uri 'self'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class Page(BaseVoilaHandler):
    """The one page: a kernel of their own for whoever opens it, or a friendly refusal."""

    visit: Visit | None = None
    gone = False

    @authenticated
    async def get(self, path: str = "") -> None:
        if path:
            raise HTTPError(404)
        kernels: Any = self.kernel_manager
        waited = 0.0
        while (visit := kernels.visit()) is None and not self.gone and (waited < PATIENCE or not kernels.places):
            await asyncio.sleep(0.1)
            waited += 0.1
        self.set_header("Cache-Control", "no-store")
        if visit is None:
            self.set_status(503)
            self.set_header("Retry-After", str(RELOAD))
            self.finish(self.render_template("full.html", places=kernels.places, reload=RELOAD))
            return
        self.visit = visit
        _ = self.xsrf_token  # sets the cookie without which the page could not give its place back
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        with suppress(StreamClosedError):
            async for part in visit.page():
                self.write(part)
                await self.flush()
        kernels.touch(visit)
        if visit.problem is not None:
            await kernels.leave(visit, "the notebook failed")

    def on_connection_close(self) -> None:
        """The browser went away while the page was on its way."""
        self.gone = True
        if self.visit is not None:
            kernels: Any = self.kernel_manager
            asyncio.ensure_future(kernels.leave(self.visit, "the page was not waited for"))


class Files(TemplateStaticFileHandler):
    """Voila's styles and scripts of one template, and of no other."""

    def parse_url_path(self, path: str) -> str:
        if not normpath(path).startswith("lab/static/"):
            raise HTTPError(404)
        return super().parse_url_path(path)


class Channel(VoilaKernelWebsocketHandler):
    """A page's connection to its kernel; it is closed when the visit is over, so that the page can say so."""

    async def open(self, kernel_id: str) -> None:
        self.kernel_manager.sockets.setdefault(kernel_id, set()).add(self)
        await super().open(kernel_id)

    def on_message(self, ws_message: Any) -> None:
        try:
            super().on_message(ws_message)
        except Exception as problem:  # a lone surrogate, say; the connection need not break for it
            self.log.warning("A message that cannot be read was left out (%s).", type(problem).__name__)

    def on_close(self) -> None:
        self.kernel_manager.sockets.get(self.kernel_id, set()).discard(self)
        super().on_close()


SERVED: dict[type, type] = {
    TornadoVoilaHandler: Page,
    VoilaKernelWebsocketHandler: Channel,
    TemplateStaticFileHandler: Files,
    **{kept: kept for kept in (KernelHandler, VoilaShutdownKernelHandler, MultiStaticFileHandler, FileFindHandler)},
}
"""Of Voila's handlers those that stay, and what takes the place of others: nothing else is served."""


class StudioServer(Voila):
    """Voila with places. visitors: how many at a time, 0 for what the memory holds; idle: minutes; ahead: kernels that
    are kept ready for the next visitors.
    """

    name = "workbench-app"
    visitors = Integer(0, min=0, config=True)
    idle = Float(20.0, min=0.01, config=True)
    ahead = Integer(1, min=0, config=True)
    code = 0  # what the command ends with

    @default("log_level")
    def _default_log_level(self) -> int:
        return logging.WARNING  # what Voila says of kernels otherwise are keys to them

    def setup_template_dirs(self) -> None:
        """Voila's own places for scripts and styles, and our page before theirs."""
        settings = self.voila_configuration
        settings.template, settings.allow_template_override, settings.allow_theme_override = "lab", "NO", "NO"
        settings.show_tracebacks, settings.extension_allowlist = True, EXTENSIONS  # our page shows no traceback
        settings.preheat_kernel = settings.progressive_rendering = False
        super().setup_template_dirs()
        self.template_paths = [str(PAGE), *self.template_paths]

    def init_settings(self) -> Any:
        self.config.KernelManager.autorestart = False  # a kernel that died is a visit that is over
        self.config.VoilaExecutor.startup_timeout = 300  # many may start at once
        settings: Any = super().init_settings()
        self.kernel_manager = settings["kernel_manager"] = Kernels(
            parent=self, connection_dir=self.connection_dir, kernel_spec_manager=self.kernel_spec_manager,
            allowed_message_types=WIDGETS, idle=self.idle, ahead=self.ahead, places=self.visitors,
        )  # fmt: skip
        self.kernel_manager.rendered = self._rendered
        if self.identity_provider.token and self.identity_provider.token_generated:
            self.log.critical("A token that nobody is told was asked for. Set JUPYTER_TOKEN, or say --token=TOKEN.")
            self.exit(1)
        return settings | {"allow_remote_access": not is_local(self.ip), "headers": HEADERS, "log_function": log}

    def init_handlers(self) -> Any:
        login = [handler for handler in self.identity_provider.get_handlers() if self.identity_provider.token]
        handlers: Any = super().init_handlers()
        return login + [(path, SERVED[kind], *rest) for path, kind, *rest in handlers if kind in SERVED]

    def listen(self) -> None:
        asyncio.get_event_loop().call_soon(self.kernel_manager.begin)
        super().listen()

    def launch_browser(self) -> None:
        """Not yet: when the first page is ready."""

    def _rendered(self, visit: Visit) -> None:
        """When the first page is ready, say so, and how many there can be."""
        self.kernel_manager.rendered = lambda visit: None
        if visit.problem is not None:
            print(f"The studio could not be started.\n{visit.problem}", file=sys.stderr, flush=True)
            self.code = 1
            self.ioloop.stop()
            return
        each = memory_of(self.kernel_manager, visit)
        free = psutil.virtual_memory().available + each
        places = self.visitors or max(1, min(int(SHARE * free / each), CROWD * (os.cpu_count() or 1)))
        self.kernel_manager.places = places
        self.kernel_manager.fill()
        print(
            f"Ready: {self.connection_url}\nUp to {places} visitors at a time, about {places * each / 1e9:.1f} GB "
            f"({each / 1e9:.2f} GB each; {free / 1e9:.1f} GB are free). A tab that is closed, or left alone for "
            f"{self.idle:g} minutes, gives its place back.",
            flush=True,
        )
        if self.open_browser:
            threading.Thread(target=webbrowser.open, args=(self.connection_url,), daemon=True).start()


def serve(notebook: Path, options: list[str]) -> int:
    """Serve one notebook until the process is told to stop; options: Voila's, and those of `StudioServer`."""
    logging.getLogger("tornado.general").setLevel(logging.ERROR)  # robots' malformed requests, pings
    server = StudioServer.instance()
    server.initialize([str(notebook), *options])
    server.start()
    return server.code


def memory_of(kernels: Kernels, visit: Visit) -> int:
    """Bytes that the process of a visit takes (resident set), and its children."""
    provisioner: Any = kernels.get_kernel(visit.kernel_id).provisioner
    process = psutil.Process(provisioner.process.pid)
    return sum(part.memory_info().rss for part in [process, *process.children(recursive=True)])


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False


def log(handler: RequestHandler) -> None:
    """Failures of the server's own, without addresses' queries, in which a token may stand."""
    if handler.get_status() >= 500 and handler.get_status() != 503:
        handler.application.settings["workbench-app"].log.error(
            "%s %s: %d", handler.request.method, type(handler).__name__, handler.get_status()
        )
