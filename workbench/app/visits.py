"""Kernels of visitors: one each, at most as many as there are places, the next ones ready before anybody comes.

Voila has a pool of its own (`preheat_kernel`). It knows no limit, starts a cold kernel for an address with `?theme=`
and shows nothing while that one starts; so the pool here is ours, and each page is sent while it is being rendered.

A place is given back as soon as its tab is closed, when nobody is connected (a robot that only fetched the page, a
browser that crashed), when the kernel died, and after `idle` minutes without a touch, even where a forgotten tab is
still connected.
"""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import nbformat
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.ioloop import PeriodicCallback
from traitlets import Float, Integer
from voila.notebook_renderer import NotebookRenderer
from voila.utils import get_page_config

WIDGETS = ["comm_open", "comm_msg", "comm_close", "comm_info_request", "kernel_info_request"]
"""What a browser may say to its kernel: what widgets need, and nothing that runs code."""
LOADING = 60.0  # seconds that a page has to connect to its kernel, on a slow line too
ABSENT = 20.0  # seconds that a connection which broke has to come back
SWEEP = 3.0
LATER = 6.0  # seconds after which the next spare kernel starts, which takes a processor for some time
HEARTBEAT = 10.0  # seconds of silence after which a page that is still rendered is sent a comment
FAILED = '<script>page.over("failed")</script></main></body></html>'
SECRET = ("JUPYTER_TOKEN",)  # of the server's environment; no kernel's business


class Visit:
    """A kernel, and the page that was or is being rendered with it.

    kernel_id: the kernel's, before it starts too. parts: the page so far; complete: nothing follows. problem: why the
    notebook did not run through. seen: when somebody was last connected, once `met`.
    """

    def __init__(self) -> None:
        self.kernel_id = str(uuid.uuid4())
        self.parts: list[str] = []
        self.complete = False
        self.problem: str | None = None
        self.seen, self.met = time.monotonic(), False
        self.task: asyncio.Task | None = None
        self._news = asyncio.Event()

    def tell(self, part: str = "", complete: bool = False) -> None:
        """Add to the page."""
        self.parts.append(part)
        self.complete = complete or self.complete
        self._news.set()
        self._news = asyncio.Event()

    async def page(self) -> AsyncIterator[str]:
        """The page as it comes."""
        sent = 0
        while True:
            news = self._news
            if part := "".join(self.parts[sent:]):
                sent = len(self.parts)
                yield part
            elif self.complete:
                return
            else:
                try:
                    await asyncio.wait_for(news.wait(), HEARTBEAT)
                except TimeoutError:
                    yield "<!-- on the way -->\n"


class Renderer(NotebookRenderer):
    """Renders the page cell by cell and keeps what went wrong in one."""

    problem: str | None = None

    async def load_notebook(self, path: str) -> Any:
        return await self.fix_notebook(nbformat.read(path, as_version=4))

    def close(self) -> None:
        """Let go of the kernel, where the page is not rendered to its end."""
        client = getattr(getattr(self, "executor", None), "kc", None)
        if client is not None:
            client.stop_channels()

    async def _jinja_cell_generator(self, nb: Any, kernel_id: str) -> AsyncIterator[Any]:
        async for cell in super()._jinja_cell_generator(nb, kernel_id):
            for output in cell.get("outputs", []):
                if output["output_type"] == "error" and self.problem is None:
                    self.problem = f"{output['ename']}: {output['evalue']}"
            yield cell


class Kernels(AsyncMappingKernelManager):
    """All kernels of the server: those of visits, and spare ones that wait for the next.

    places: most kernels at a time, whether visited or spare; 0 as long as that is not known, when there is one. ahead:
    how many spare ones are kept where there is room. idle: minutes.
    """

    places = Integer(0)
    ahead = Integer(1)
    idle = Float(20.0)

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.visits: set[Visit] = set()
        self.spare: list[Visit] = []
        self.sockets: dict[str, set[Any]] = {}
        self._ending: set[str] = set()
        self._failed = False  # the last page: then none is rendered without a visitor
        self.rendered: Callable[[Visit], Any] = lambda visit: None  # is told of every page that is complete
        self._sweeper = PeriodicCallback(self.sweep, 1000 * SWEEP)

    def begin(self) -> None:
        """Start the first kernel, and look after all of them from now on."""
        self.spare.append(self._heat())
        self._sweeper.start()

    # -- visits ----------------------------------------------------------------------------------------------------

    def visit(self) -> Visit | None:
        """A place for somebody who just came, None where all are taken."""
        if len(self.visits) >= (self.places or 1):
            return None
        visit = self.spare.pop(0) if self.spare else self._heat()
        self.visits.add(visit)
        self.touch(visit)
        asyncio.get_running_loop().call_later(LATER, self.fill)  # the visitor who is here comes first
        return visit

    def fill(self) -> None:
        """Start spare kernels where there is room for them."""
        while not self._failed and len(self.spare) < min(self.ahead, (self.places or 1) - len(self.visits)):
            self.spare.append(self._heat())

    async def leave(self, visit: Visit, why: str) -> None:
        """Give a place back and end its kernel, at once: there is nothing to be saved."""
        self.log.info("A visit ended: %s.", why)
        if visit.task is not None and not visit.complete:
            visit.task.cancel()
        self._forget(visit)
        if visit.kernel_id in self:
            await self.shutdown_kernel(visit.kernel_id, now=True)
        self.fill()

    async def sweep(self) -> None:
        """End what nobody needs any more."""
        for visit in [*self.spare, *self.visits]:
            if visit.complete and (why := await self._over(visit)):
                await self.leave(visit, why)
        known = {visit.kernel_id for visit in [*self.spare, *self.visits]}
        for kernel_id in set(self.list_kernel_ids()) - known:  # of visitors who left while it started
            await self.shutdown_kernel(kernel_id)

    async def _over(self, visit: Visit) -> str | None:
        """Why a visit, or a spare kernel, is over."""
        if visit.kernel_id not in self:
            return "its kernel was gone"
        kernel: Any = self.get_kernel(visit.kernel_id)
        if not await kernel.is_alive():
            return "its kernel had died"
        if visit in self.spare:
            return None
        if self._kernel_connections.get(visit.kernel_id):
            visit.seen, visit.met = time.monotonic(), True
        elif time.monotonic() - visit.seen > (ABSENT if visit.met else LOADING):
            return "nobody was connected"
        still = datetime.now(UTC) - kernel.last_activity
        return f"{self.idle:g} minutes without a touch" if still > timedelta(minutes=self.idle) else None

    def touch(self, visit: Visit) -> None:
        """Somebody is there: idleness is counted from now on."""
        visit.seen = time.monotonic()
        if visit.kernel_id in self:
            kernel: Any = self.get_kernel(visit.kernel_id)
            kernel.last_activity = datetime.now(UTC)

    def _forget(self, visit: Visit) -> None:
        self.visits.discard(visit)
        if visit in self.spare:
            self.spare.remove(visit)

    # -- kernels and their pages -----------------------------------------------------------------------------------

    def _heat(self) -> Visit:
        visit = Visit()
        visit.task = asyncio.get_running_loop().create_task(self._render(visit))
        return visit

    async def _render(self, visit: Visit) -> None:
        """Start a kernel, run the notebook in it, and write the page meanwhile."""
        renderer = self._renderer()
        try:
            await renderer.initialize()
            await self.start_kernel(
                kernel_id=visit.kernel_id, kernel_name=renderer.notebook.metadata.kernelspec.name, path="",
                env=self._environment(), extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )  # fmt: skip
            pages = renderer.generate_content_generator(visit.kernel_id, self.get_kernel(visit.kernel_id))
            async for part, _ in pages:
                visit.tell(part)
            visit.problem = renderer.problem
        except asyncio.CancelledError:
            renderer.close()
            raise
        except Exception as problem:
            self.log.exception("A page could not be rendered.")
            visit.problem = f"{type(problem).__name__}: {problem}"
            visit.tell(FAILED)
        self._failed = visit.problem is not None
        visit.tell(complete=True)
        self.touch(visit)
        if self._failed and visit in self.spare:
            await self.leave(visit, "the notebook failed")
        self.rendered(visit)

    def _renderer(self) -> Renderer:
        server: Any = self.parent
        told = {"base_url": server.base_url, "settings": server.app.settings, "log": server.log,
                "voila_configuration": server.voila_configuration}  # fmt: skip
        return Renderer(
            voila_configuration=server.voila_configuration,
            traitlet_config=server.config,
            notebook_path=server.notebook_path,
            template_paths=server.template_paths,
            config_manager=server.config_manager,
            contents_manager=server.contents_manager,
            kernel_spec_manager=server.kernel_spec_manager,
            base_url=server.base_url,
            page_config=get_page_config(**told),
        )

    def _environment(self) -> dict[str, str]:
        threads = str(max(1, (os.cpu_count() or 1) // (self.places or 2)))
        kept = {name: setting for name, setting in os.environ.items() if name not in SECRET}
        return {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", **kept, "WORKBENCH_SERVED": "1"}

    async def shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        """The place is free at once, also where the browser asked for it; the kernel is gone a moment later."""
        for visit in [*self.visits, *self.spare]:
            if visit.kernel_id == kernel_id:
                self._forget(visit)
        if kernel_id in self._ending:  # a browser asks twice
            return
        self._ending.add(kernel_id)
        try:
            await super().shutdown_kernel(kernel_id, now=True, restart=restart)
        finally:
            self._ending.discard(kernel_id)
        for socket in self.sockets.pop(kernel_id, ()):
            socket.close(1000, "the visit is over")  # the page then asks for the kernel, and says so
        self.fill()

    async def shutdown_all(self, now: bool = False) -> None:
        self.ahead = 0  # nothing is started any more
        self._sweeper.stop()
        for visit in [*self.visits, *self.spare]:
            if visit.task is not None:
                visit.task.cancel()
        await super().shutdown_all(now=True)
