"""Download published files: resumed, cached, verified, from mirrors if necessary."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleetnas.fleet_protocol.errors import DownloadError
from fleetnas.fleet_protocol.folders import user_folder
from fleetnas.supernet_export.checkpoints.published_file import PublishedFile as PublishedFile

#: Addresses, separated by spaces or commas, that are asked before the official one; a file's name is appended.
MIRRORS_VARIABLE = "FLEETNAS_MIRRORS"
#: How often one address is asked again after it broke off; each time only the rest is fetched.
ATTEMPTS = 4

_BLOCK = 1 << 18
_TIMEOUT_S = 30.0

#: Called with the bytes so far and the bytes in all.
ProgressCallback = Callable[[int, int], None]


def cache_directory() -> Path:
    """Return the folder of downloads: `fleetnas/checkpoints` in the XDG cache directory; `UsageError` without one."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "fleetnas" / "checkpoints"


def mirrors_from_environment() -> list[str]:
    """Return the mirrors in `FLEETNAS_MIRRORS`."""
    return os.environ.get(MIRRORS_VARIABLE, "").replace(",", " ").split()


def download(
    file: PublishedFile,
    *,
    cache: Path | None = None,
    mirrors: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Return the path of `file`, which is fetched unless the cache has it.

    `DownloadError` names every address that was asked and what each answered.
    """
    folder = cache_directory() if cache is None else cache
    target, partial = folder / file.name, folder / f"{file.name}.part"
    bases = mirrors_from_environment() if mirrors is None else mirrors
    failures: list[str] = []
    try:
        if target.is_file() and file.is_in(target):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        for url in [*(f"{base.rstrip('/')}/{file.name}" for base in bases), file.url]:
            failure = _fetch(url, file, partial, progress)
            if failure is None:
                os.replace(partial, target)
                return target
            failures.append(f"{url}: {failure}")
    except OSError as error:
        raise DownloadError(
            f"{file.name} cannot be kept in {folder}: {error}; choose another cache directory"
        ) from None
    raise DownloadError(
        f"{file.name} could not be downloaded ({'; '.join(failures)}); try again, or set {MIRRORS_VARIABLE} to a mirror"
    )


def _fetch(url: str, file: PublishedFile, partial: Path, progress: ProgressCallback | None) -> str | None:
    """Fetch into `partial`, resuming it; return None if it then holds the file, else the failure."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets around what is no IPv6 address, or a port that is none
        known = False
    if not known:
        return "not an http address"
    failure = "nothing came"
    for _ in range(ATTEMPTS):
        resumed = partial.stat().st_size if partial.exists() else 0
        if resumed > file.most_bytes:
            partial.unlink()
            resumed = 0
        failure = _fetch_rest(url, file, partial, resumed, progress) or ""
        if not failure:
            if file.is_in(partial):
                return None
            partial.unlink()
            failure = f"it does not have the {file.digest_kind} {file.digest} that it should have"
            if not resumed:
                break  # The address itself serves something else; what was resumed may only have been bad before.
        elif failure.startswith("HTTP"):
            break
    return failure


def _fetch_rest(
    url: str, file: PublishedFile, partial: Path, have: int, progress: ProgressCallback | None
) -> str | None:
    """Append the missing bytes; return None if the answer was complete, else the failure."""
    request = urllib.request.Request(url, headers={"User-Agent": "fleetnas", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            resumes = answer.status == 206 and _range_start(answer) == have
            done = have if resumes else 0
            length = str(answer.headers.get("Content-Length", ""))
            total = done + int(length) if length.isdecimal() else file.size or 0
            if total > file.most_bytes or (file.size is not None and total != file.size):
                return f"HTTP answer of {total:,} bytes in all, {_expected(file)}"
            with partial.open("ab" if resumes else "wb") as out:
                # Not every answer has its length.
                while block := answer.read(min(_BLOCK, file.most_bytes + 1 - done)):
                    if done + len(block) > file.most_bytes:
                        out.truncate(0)
                        return f"HTTP answer that does not end after {file.most_bytes:,} bytes, {_expected(file)}"
                    out.write(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, max(total, done))
            return f"it broke off after {done:,} of {total:,} bytes" if done < total else None
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # Nothing is missing, or what is there is too long: its digest will tell.
            return None
        return f"HTTP {error.code} {error.reason}"
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ssl.SSLError,
        TimeoutError,
        ConnectionError,
        UnicodeError,  # a name that no host can have
    ) as error:
        reason = getattr(error, "reason", None) or error
        return " ".join(str(reason).split())[:200] or type(error).__name__


def _expected(file: PublishedFile) -> str:
    return f"at most {file.most_bytes:,} are taken" if file.size is None else f"{file.size:,} were expected"


def _range_start(answer: Any) -> int:
    """Return the offset of a partial answer, from `Content-Range: bytes <first>-<last>/<size>`."""
    unit, _, rest = str(answer.headers.get("Content-Range", "")).partition(" ")
    first = rest.split("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else -1
