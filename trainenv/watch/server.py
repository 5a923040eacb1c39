"""The live page: a server that reads a run's folder and sends what is new to browsers.

It listens on the loopback of this machine. On any other address every request for data must carry
a token. The page asks this server and no other, and its policy allows its own scripts only.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from trainenv.report.drawing.page import style
from trainenv.types import UserError
from trainenv.watch.run_reader import RunReader
from trainenv.watch.state import curves_of, facts_of
from trainenv.watch.story import story_of

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORT = 6180
_TRIES = 20  # ports that are tried after `PORT`
_EVERY = 1.0  # seconds between two readings of the folder
_SILENCE = 15.0  # seconds without news after which a comment keeps a connection open
_MOST = 32  # most browsers at once
_PARTS = ("facts", "curves", "story")
_ASSETS = {
    "uplot.js": ("text/javascript", ("uPlot.iife.min.js",)),
    "charts.js": ("text/javascript", ("charts.js",)),
    "live.js": ("text/javascript", ("live.js",)),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Address:
    """Place where the page is served.

    Attributes:
        host: Address that is listened on.
        port: Port.
        token: Secret that the address must carry; empty on the loopback.
    """

    host: str
    port: int
    token: str

    def __str__(self) -> str:
        host = self.host
        if ":" in host:
            host = f"[{host}]"
        if host in ("0.0.0.0", "[::]"):
            host = socket.gethostname()
        query = ""
        if self.token:
            query = f"?token={self.token}"
        return f"http://{host}:{self.port}/{query}"


class Live:
    """State of a run as JSON texts, each with a number that changes with it."""

    def __init__(self, reader: RunReader) -> None:
        self.reader = reader
        self.parts: dict[str, tuple[int, str]] = {}
        self.browsers = 0
        self._read = -1
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()

    async def follow(self) -> None:
        """Read the folder every second, as long as a browser is connected."""
        while True:
            if self.browsers or not self.parts:
                await self.update()
            await asyncio.sleep(_EVERY)

    async def update(self) -> None:
        """Read the folder, and wake those who wait if something has changed."""
        async with self._lock:
            if await asyncio.to_thread(self._update):
                self._changed.set()
                self._changed = asyncio.Event()

    async def stretch(self, first: int, last: int) -> str:
        """Return the curves from one step to another, as JSON."""
        async with self._lock:
            return await asyncio.to_thread(lambda: _json(curves_of(self.reader, first, last)))

    async def messages(self) -> AsyncIterator[str]:
        """Yield the state and then each change, as server-sent events."""
        sent: dict[str, int] = {}
        self.browsers += 1
        try:
            await self.update()
            while True:
                changed = self._changed
                for name, (number, text) in list(self.parts.items()):
                    if sent.get(name) != number:
                        sent[name] = number
                        yield f"event: {name}\ndata: {text}\n\n"
                try:
                    await asyncio.wait_for(changed.wait(), _SILENCE)
                except TimeoutError:
                    yield ": nothing new\n\n"
        finally:
            self.browsers -= 1

    def _update(self) -> bool:
        self.reader.poll()
        made = {"facts": _json(facts_of(self.reader))}  # it depends on the time too
        if self.reader.version != self._read:
            self._read = self.reader.version
            made["curves"] = _json(curves_of(self.reader))
            made["story"] = _json(story_of(self.reader))
        changed = False
        for name, text in made.items():
            number, before = self.parts.get(name, (0, ""))
            if text != before:
                self.parts[name] = (number + 1, text)
                changed = True
        return changed


def make_app(reader: RunReader, address: Address) -> Starlette:
    """Make the application that serves the page of a run."""
    live = Live(reader)

    def is_allowed(request: Request) -> bool:
        given = request.query_params.get("token", "")
        return not address.token or secrets.compare_digest(given.encode(), address.token.encode())

    async def page(request: Request) -> Response:
        if not is_allowed(request):
            return _refused()
        return Response(_asset("index.html"), media_type="text/html", headers=_HEADERS)

    async def events(request: Request) -> Response:
        if not is_allowed(request):
            return _refused()
        if live.browsers >= _MOST:
            return PlainTextResponse(f"{_MOST} browsers are connected; close one", 503, _HEADERS)
        return StreamingResponse(live.messages(), media_type="text/event-stream", headers=_HEADERS)

    async def stretch(request: Request) -> Response:
        if not is_allowed(request):
            return _refused()
        try:
            first = int(request.query_params["from"])
            last = int(request.query_params["to"])
        except (KeyError, ValueError):
            return PlainTextResponse("expected whole numbers: from, to", 400, _HEADERS)
        text = await live.stretch(first, last)
        return Response(text, media_type="application/json", headers=_HEADERS)

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "style.css":
            sheet = style("page", "style") + _asset("uPlot.min.css") + _asset("live.css")
            return Response(sheet, media_type="text/css", headers=_HEADERS)
        if name not in _ASSETS:
            return PlainTextResponse("not found", 404, _HEADERS)
        kind, names = _ASSETS[name]
        return Response("".join(map(_asset, names)), media_type=kind, headers=_HEADERS)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(live.follow())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    routes = [
        Route("/", page),
        Route("/events", events),
        Route("/range", stretch),
        Route("/{name}", asset),
    ]
    middleware = []
    if not address.token:
        # Another page in the same browser can't reach us by a name that it makes point here.
        hosts = ["127.0.0.1", "localhost", "[::1]"]
        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan)


def open_socket(host: str, port: int | None) -> tuple[socket.socket, Address]:
    """Open the socket that the page is served on.

    Args:
        host: Address to listen on.
        port: Port; None for the first free one from `PORT` on.

    Raises:
        UserError: The address can't be listened on, or the port is in use.
    """
    wanted = range(PORT, PORT + _TRIES)
    if port is not None:
        wanted = range(port, port + 1)
    family = socket.AF_INET
    if ":" in host:
        family = socket.AF_INET6
    reason = ""
    for one in wanted:
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, one))
            server.listen(64)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            server.close()
            continue
        token = ""
        if host not in LOOPBACK:
            token = secrets.token_urlsafe(16)
        return server, Address(host=host, port=server.getsockname()[1], token=token)
    raise UserError(
        f"expected a free port at {host} to serve the page on, found: {reason}; "
        "give another --port or --host"
    )


def serve(reader: RunReader, server: socket.socket, address: Address) -> None:
    """Serve the page until the process is interrupted."""
    config = uvicorn.Config(
        make_app(reader, address),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[server])


def _refused() -> Response:
    return PlainTextResponse(
        "This page needs the token of its address, as trainenv watch has printed it.",
        403,
        _HEADERS,
    )


@cache
def _asset(name: str) -> str:
    """Read a file of the page, from the sources or the wheel."""
    return (files("trainenv.watch") / "page" / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
