"""The wheel of the fleetnas that runs here, packed again from the installed files: what devices install.

No build tool and no network is needed, whether fleetnas was installed from a wheel or as an editable checkout, and the
same files give the same bytes. A wheel of a checkout has a local version label, a hash of the agent's files: agents of
different states of one checkout can be told apart.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fleetnas.fleet_protocol.errors import UsageError

_NAME = "fleetnas"
#: Suffixes of the packages' files; `[tool.setuptools.package-data]` of pyproject.toml has the same.
_SUFFIXES = (".py", ".typed", ".safetensors", ".csv", ".json", ".toml", ".html", ".j2", ".css", ".js", ".svg", ".sh")
#: Packages that an agent imports: a change of the coordinator alone makes no agent out of date.
_OF_THE_AGENT = ("device_profiles", "fleet_protocol", "supernet_export", "agent")
_LABEL_DIGITS = 10
#: Earliest time that a zip file can hold; all files have it.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PACKED = (".safetensors",)


@dataclass(frozen=True)
class OwnWheel:
    """A wheel, in memory."""

    name: str
    version: str
    content: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """Hash of the content, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class _Installation:
    """The installed fleetnas: its folder, its metadata, and the checkout that it is, if any."""

    folder: Path
    distribution: metadata.Distribution = field(repr=False)
    editable: bool = False

    @classmethod
    def here(cls) -> _Installation:
        # A checkout in the search path also has the metadata that building it left there, without a record of files.
        installed = [each for each in metadata.distributions(name=_NAME) if each.read_text("RECORD") is not None]
        if not installed:
            raise UsageError(
                "this fleetnas was not installed with pip, so no wheel of it can be made; install it: "
                "python -m pip install --editable '.[coordinator]' in its checkout"
            )
        distribution = installed[0]
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        editable = bool(origin.get("dir_info", {}).get("editable"))
        spec = find_spec(_NAME)
        assert spec is not None
        assert spec.origin is not None
        return cls(Path(spec.origin).parent, distribution, editable)

    @property
    def version(self) -> str:
        """Version of the wheel: the installed one, with a label of the agent's files where it is a checkout."""
        version = self.distribution.version
        if not self.editable:
            return version
        return f"{version.partition('+')[0]}+{self._label()}"

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield each file of the packages by its path in the wheel, sorted."""
        found = {}
        for folder, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
            for name in names:
                if name.endswith(_SUFFIXES) and not name.startswith("."):
                    path = Path(folder, name)
                    found[f"{_NAME}/{path.relative_to(self.folder).as_posix()}"] = path
        yield from sorted(found.items())

    def metadata_files(self, version: str) -> Iterator[tuple[str, bytes]]:
        """Yield the files of the wheel's dist-info folder, RECORD excepted."""
        folder = f"{_NAME}-{version}.dist-info"
        for name in ("METADATA", "entry_points.txt", "top_level.txt"):
            text = self.distribution.read_text(name)
            if text is None:
                continue
            if name == "METADATA":
                text = text.replace(f"\nVersion: {self.distribution.version}\n", f"\nVersion: {version}\n", 1)
            yield f"{folder}/{name}", text.encode()
        for name in self.distribution.metadata.get_all("License-File") or ():
            if (text := self.distribution.read_text(f"licenses/{name}")) is not None:
                yield f"{folder}/licenses/{name}", text.encode()
        yield (
            f"{folder}/WHEEL",
            f"Wheel-Version: 1.0\nGenerator: {_NAME}\nRoot-Is-Purelib: true\nTag: py3-none-any\n".encode(),
        )

    def _label(self) -> str:
        digest = hashlib.sha256()
        for name, path in self.files():
            if name.count("/") == 1 or name.split("/")[1] in _OF_THE_AGENT:
                content = path.read_bytes()
                digest.update(f"{name}\0{len(content)}\0".encode() + content)
        for requirement in sorted(self.distribution.requires or ()):
            digest.update(requirement.encode() + b"\0")
        return digest.hexdigest()[:_LABEL_DIGITS]


def own_version() -> str:
    """Return the version of the wheel that this fleetnas gives to devices."""
    return _Installation.here().version


def own_wheel() -> OwnWheel:
    """Pack this fleetnas into a wheel; `UsageError` where it is not installed."""
    installed = _Installation.here()
    version = installed.version
    contents = {name: path.read_bytes() for name, path in installed.files()}
    contents |= dict(installed.metadata_files(version))
    record = f"{_NAME}-{version}.dist-info/RECORD"
    contents[record] = _record(contents, record)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(_PACKED) else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return OwnWheel(f"{_NAME}-{version}-py3-none-any.whl", version, packed.getvalue())


def _record(contents: Mapping[str, bytes], own_name: str) -> bytes:
    """Return the list of files with their hashes (packaging.python.org, "Recording installed projects")."""
    lines = []
    for name, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return ("".join(lines) + f"{own_name},,\n").encode()
