"""Mirrors: web servers that hold bundles by their hash, so that these need not pass through the broker.

A mirror is the address of a folder. A bundle lies in it as `<SHA-256>.supernet`.
"""

from __future__ import annotations

import re

from fleet_protocol.errors import UsageError

#: http or https, a host, perhaps a port and a path; no login, no query: a file's name is appended.
MIRROR_PATTERN = r"^https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%+/-]*)?$"
MAX_MIRROR_LENGTH = 300


def check_mirror(url: str) -> str:
    """`url` unchanged; `UsageError` where it cannot be a mirror's address."""
    if len(url) > MAX_MIRROR_LENGTH or not re.fullmatch(MIRROR_PATTERN, url):
        raise UsageError(
            f"mirror {url!r} is not the address of a folder: give https://HOST[:PORT][/PATH], at most "
            f"{MAX_MIRROR_LENGTH} characters, without login, query or spaces"
        )
    return url


def bundle_name(sha256: str) -> str:
    """A bundle's file in a mirror's folder."""
    return f"{sha256}.supernet"


def bundle_url(mirror: str, sha256: str) -> str:
    """Where a mirror has a bundle."""
    return f"{mirror.rstrip('/')}/{bundle_name(sha256)}"
