"""The dashboard as an ASGI application: addresses, errors as pages, and answers that say only what has changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fleetnas.coordinator.dashboard.access import Application, Guard, HostRule
from fleetnas.coordinator.dashboard.pages import Pages, Sources
from fleetnas.coordinator.dashboard.rendering import ASSETS, Page, Renderer, address_of_asset, asset
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError

_NO_STORE = {"cache-control": "no-store"}
_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}

_log = logging.getLogger("fleetnas.coordinator")


@dataclass(frozen=True)
class Access:
    """Where the dashboard listens, and who may read it."""

    host: str
    port: int
    names: Collection[str] = ()
    """Further host names under which it is reached."""
    token: str | None = None
    """Asked for once per browser; None: everybody who can connect may read."""


def build_application(sources: Sources, store: str, access: Access) -> Application:
    """Make the application; `store` is the store's name for people."""
    renderer = Renderer(store)
    answers = _Answers(Pages(sources, renderer), renderer)
    routes = [
        Route("/", answers.runs),
        Route("/compare", answers.compare),
        Route("/runs/{run}", answers.run),
        Route("/runs/{run}/portfolio", answers.portfolio),
        Route("/runs/{run}/devices/{device}/{setting:path}", answers.device),
        *(Route(address_of_asset(name), _static(name), name=name) for name in ASSETS),
    ]
    inner = Starlette(
        routes=routes,
        # Pages with thousands of dots are a tenth of their size.
        middleware=[Middleware(GZipMiddleware, minimum_size=2000, compresslevel=3)],
        exception_handlers={HTTPException: answers.not_found},
    )
    return Guard(inner, HostRule(access.host, access.names), access.token, access.port, renderer.error)


def _static(name: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        del request
        return Response(asset(name), media_type=ASSETS[name], headers=_FOR_EVER)

    return answer


class _Answers:
    """Answers requests; each in a thread of its own, as stores are read there."""

    def __init__(self, pages: Pages, renderer: Renderer) -> None:
        self._pages, self._render = pages, renderer

    def runs(self, request: Request) -> Response:
        return self._answer(request, lambda: self._pages.runs(_number(request, "page", 1)))

    def run(self, request: Request) -> Response:
        return self._answer(request, lambda: self._pages.run(request.path_params["run"]))

    def device(self, request: Request) -> Response:
        names = request.path_params
        key = (names["device"], names["setting"])
        return self._answer(request, lambda: self._pages.device(names["run"], key, _number(request, "from", 0)))

    def compare(self, request: Request) -> Response:
        return self._answer(request, lambda: self._pages.compare(request.query_params.getlist("run")))

    def portfolio(self, request: Request) -> Response:
        renew = not _wants_parts(request)
        return self._answer(request, lambda: self._pages.portfolio(request.path_params["run"], renew=renew))

    def not_found(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        text = f"There is no page {request.url.path[:200]!r} here; go on from the list of runs."
        return self._page(request, self._render.error_page(status, text))

    def _answer(self, request: Request, make: Callable[[], Page]) -> Response:
        """Answer with a page, or with the page of what went wrong."""
        try:
            page = make()
        except UsageError as error:
            page = self._render.error_page(404, _sentence(str(error)))
        except FleetnasError as error:
            page = self._render.error_page(503, _sentence(one_line(error)))
        except Exception as error:  # noqa: BLE001 - a defect of one page must not hide the others
            _log.error("the page %s cannot be made", request.url.path, exc_info=error)
            text = f"This page cannot be made ({one_line(error)}); the log of the dashboard has the trace."
            page = self._render.error_page(500, text)
        return self._page(request, page)

    def _page(self, request: Request, page: Page) -> Response:
        headers = {**_NO_STORE, "etag": page.etag, "vary": "accept, cookie"}
        if not _wants_parts(request):
            return Response(self._render.page(page), page.status, headers, "text/html")
        if page.status != 200:
            text = page.parts[0].html.striptags()
            return Response(json.dumps({"error": text}), page.status, headers, "application/json")
        changed = page.changed(request.headers.get("if-none-match", ""))
        if not changed:
            return Response(status_code=304, headers=headers)
        parts = [{"name": part.name, "html": str(part.html), "digest": part.digest} for part in changed]
        return Response(json.dumps({"etag": page.etag, "parts": parts}), 200, headers, "application/json")


def _wants_parts(request: Request) -> bool:
    return request.headers.get("accept", "") == "application/json"


def _number(request: Request, name: str, otherwise: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else otherwise


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
