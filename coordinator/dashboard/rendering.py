"""Pages as HTML in parts, so that a page that is open is sent only the parts that have changed."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import Any

from markupsafe import Markup

from fleetnas.coordinator.records.budget import shown_purpose
from fleetnas.coordinator.records.snapshot import TargetSnapshot
from fleetnas.coordinator.records.targets import target_name
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.page_templates import template_environment

_PACKAGE = "fleetnas.coordinator.dashboard"
_MARKS = {
    "running": "●",
    "complete": "✓",
    "partial": "◐",
    "failed": "✗",
    "interrupted": "‖",
    "offline": "○",
    "fetching": "↓",
    "measuring": "●",
    "waiting": "◌",
    "verifying": "◆",
    "done": "✓",
    "lost": "✗",
    "idle": "·",
}
#: Static files with their media types.
ASSETS = {"dashboard.css": "text/css", "dashboard.js": "text/javascript", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True)
class Part:
    """One part of a page, renewed by itself."""

    name: str
    html: Markup
    digest: str
    """Of its content."""


@dataclass(frozen=True)
class Page:
    """One page. The last step of `trail` has no address: it is the page itself."""

    title: str
    heading: str
    trail: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    every_s: float = 0.0
    """Seconds between two looks for changes; 0: the page does not change."""
    status: int = 200

    @property
    def etag(self) -> str:
        """Digests of all parts, by which a browser says what it has."""
        return '"' + ".".join(part.digest for part in self.parts) + '"'

    def changed(self, etag: str) -> list[Part]:
        """Return the parts that the owner of `etag` does not have; all where it is of another page."""
        known = etag.removeprefix("W/").strip('"').split(".")
        if len(known) != len(self.parts):
            return list(self.parts)
        return [part for part, digest in zip(self.parts, known, strict=True) if part.digest != digest]


class Renderer:
    """Renders pages with the templates of this package."""

    def __init__(self, store: str) -> None:
        """`store` is the store's name for people, without a password."""
        self._environment = environment = template_environment(_PACKAGE)
        environment.filters.update(
            target_text=_target_text,
            target_status=wording.target_status,
            target_accuracy=wording.target_accuracy,
            breakable=_breakable,
            iso=_iso,
            utc=_utc,
        )
        environment.globals.update(
            verified=wording.verified,
            predictor_error=wording.predictor_error,
            data_quality=wording.data_quality,
            shown_purpose=shown_purpose,
            progress_text=wording.progress,
            status_mark=lambda word: _MARKS.get(str(word), "·"),
            store=store,
            version=metadata.version("fleetnas"),
            assets={name.rpartition(".")[2].replace("svg", "icon"): address_of_asset(name) for name in ASSETS},
        )
        for name in environment.list_templates(extensions=("j2",)):
            environment.get_template(name)  # compiled now, and not while the first reader waits
        environment.globals["m"] = environment.get_template("macros.html.j2").module

    def parts(self, template: str, names: Sequence[str], values: Mapping[str, Any]) -> tuple[Part, ...]:
        """Render the blocks of a template that are named; each is a part of the page."""
        loaded = self._environment.get_template(template)
        context = loaded.new_context(dict(values))
        return tuple(_part(name, "".join(loaded.blocks[name](context))) for name in names)

    def page(self, page: Page) -> bytes:
        """Render a page as a whole."""
        return self._environment.get_template("layout.html.j2").render(page=page).encode()

    def error(self, status: int, text: str) -> bytes:
        """Render the page of an error."""
        return self.page(self.error_page(status, text))

    def error_page(self, status: int, text: str) -> Page:
        """Make the page of an error, which says what to do."""
        heading = {
            401: "A token is needed",
            403: "Wrong token",
            404: "Not here",
            405: "Only reading",
            421: "Another host name",
            503: "Not now",
        }.get(status, "This cannot be shown")
        parts = self.parts("error.html.j2", ("error",), {"text": text})
        return Page(heading, heading, (("Runs", "/"), (heading, "")), parts, status=status)


def _part(name: str, html: str) -> Part:
    return Part(name, Markup(html), hashlib.sha256(html.encode()).hexdigest()[:12])


@cache
def asset(name: str) -> bytes:
    """Return the content of a static file."""
    return resources.files(_PACKAGE).joinpath(name).read_bytes()


@cache
def address_of_asset(name: str) -> str:
    """Return the address of a static file; it changes with the content, so that browsers may keep it for ever."""
    return f"/static/{hashlib.sha256(asset(name)).hexdigest()[:12]}/{name}"


def _target_text(target: TargetSnapshot) -> str:
    return target_name(target.target_ms, target.subnet, target.target) or "–"


def _breakable(text: str) -> Markup:
    """Let a long name break behind its slashes and underscores."""
    pieces = re.split(r"(?<=[/_])", text)
    return Markup("<wbr>").join(pieces)


def _iso(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.timezone.utc).isoformat(timespec="seconds")


def _utc(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
