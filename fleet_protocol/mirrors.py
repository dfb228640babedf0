"""Addresses of mirrors: web servers that hold bundles by their hash, so that these need not pass through the broker.

A mirror is the address of a folder. A bundle lies in it as `<SHA-256>.supernet`.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from fleetnas.fleet_protocol.addresses import check_host
from fleetnas.fleet_protocol.errors import UsageError

#: http or https, a host, perhaps a port and a path; no login, no query: a file's name is appended.
MIRROR_PATTERN = r"^https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%+/-]*)?$"
MAX_MIRROR_LENGTH = 300


def check_mirror(url: str) -> str:
    """Return `url` unchanged; `UsageError` if it cannot be a mirror's address."""
    try:
        if len(url) > MAX_MIRROR_LENGTH or not re.fullmatch(MIRROR_PATTERN, url):
            raise ValueError(url)
        return _checked(url)
    except ValueError:
        raise UsageError(
            f"mirror {url!r} is not the address of a folder: give https://HOST[:PORT][/PATH], at most "
            f"{MAX_MIRROR_LENGTH} characters, without login, query or spaces"
        ) from None


def _checked(url: str) -> str:
    """Return `url` unchanged; `ValueError` if its host or port, which match the pattern, are impossible."""
    parts = urlsplit(url)
    if parts.port == 0:
        raise ValueError("port 0")
    try:
        check_host(parts.hostname or "")
    except UsageError as error:
        raise ValueError(str(error)) from None
    return url


#: The address of a mirror in a message.
Mirror = Annotated[str, Field(pattern=MIRROR_PATTERN, max_length=MAX_MIRROR_LENGTH), AfterValidator(_checked)]


def bundle_name(sha256: str) -> str:
    """Return the name of a bundle's file in a mirror's folder."""
    return f"{sha256}.supernet"


def bundle_url(mirror: str, sha256: str) -> str:
    """Return the URL of a bundle on a mirror."""
    return f"{mirror.rstrip('/')}/{bundle_name(sha256)}"
