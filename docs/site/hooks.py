"""Pages of the site that lie outside `docs/`, for mkdocs: benchmarks, changelog, contributing, security policy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent.parent
#: Source in the repository -> page of the site.
PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
}
_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the outside pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to the site's pages, whichever folder the source lies in."""
    sources = {page: source for source, page in PAGES.items()}
    source = sources.get(page.file.src_uri)
    here = (ROOT / source).parent if source else (ROOT / "docs" / page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        if "://" in link or link.startswith("mailto:"):
            return match[0]
        try:
            target = (here / link).resolve().relative_to(ROOT).as_posix()
        except ValueError:
            return match[0]
        if target in PAGES:
            site = PAGES[target]
        elif target == "README.md":
            site = "index.md"
        elif target.startswith("docs/"):
            site = target.removeprefix("docs/")
        else:
            # A file of the repository: the site shows its path.
            return f"] `{target}`"
        up = "../" * page.file.src_uri.count("/")
        return f"]({up}{site}{anchor})"

    return _LINK.sub(moved, markdown)
