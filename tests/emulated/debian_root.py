"""A Debian 12 root of another architecture, made once and reused: as near as a PC comes to Raspberry Pi OS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from boards import Board
from entering import Entrance, registered, registration

SUITE = "bookworm"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")
#: pip's settings of this shell that mean the same inside.
_PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "http_proxy", "https_proxy", "no_proxy")


class EmulationError(Exception):
    """What keeps an emulated board from being made or from doing its work, and what to do."""


class DebianRoot:
    """The root of one board below `folder`, with what it shares with the other boards beside it."""

    def __init__(self, folder: Path, board: Board) -> None:
        self.board = board
        self.work = folder / board.architecture
        self.root = self.work / "root"
        self._looks = self.work / "looks"
        self._logs = self.work / "logs"
        self._packages = folder / f"packages-{board.architecture}"
        self._pip_cache = folder / "pip-cache"

    def make(self, *, fresh: bool = False) -> None:
        """Make the root unless it is there; `fresh` makes it again."""
        _check_host(self.board)
        wanted = f"{SUITE} {' '.join(self.board.packages)}\n"
        stamp = self.work / "made"
        if not fresh and stamp.exists() and stamp.read_text() == wanted:
            say(f"root: reusing {self.root}")
            return
        if self.work.exists():
            shutil.rmtree(self.work)
        for folder in (self._packages, self._pip_cache, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        self.board.write_looks(self._looks)
        self._unpack()
        self._configure()
        self._borrow_certificates()
        stamp.write_text(wanted)

    def entrance(self, bindings: Mapping[Path, str] | None = None) -> Entrance:
        """The way in, with pip's cache, and `bindings` of the host's paths by their paths inside."""
        return Entrance(self.root, self.board, self._looks, {self._pip_cache: "/root/.cache/pip", **(bindings or {})})

    def run(self, name: str, command: Sequence[str], bindings: Mapping[Path, str] | None = None) -> str:
        """Run a command inside, wait for it and return what it printed; `EmulationError` where it fails."""
        log = self._logs / f"{name}.log"
        begin = time.monotonic()
        with log.open("wb") as output:
            process = self.entrance(bindings).start(command, output, pip_environment())
            try:
                code = process.wait()
            finally:
                process.kill()
        return self._finished(name, log, code, begin)

    def _unpack(self) -> None:
        """At this machine's own speed."""
        log = self._logs / "unpack.log"
        begin = time.monotonic()
        with log.open("wb") as output:
            code = subprocess.run(
                [
                    *("debootstrap", "--foreign", f"--arch={self.board.architecture}", "--variant=minbase"),
                    *(f"--keyring={_KEYRING}", f"--cache-dir={self._packages}"),
                    *(f"--include={','.join(('ca-certificates', 'python3', *self.board.packages))}", SUITE),
                    str(self.root),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        self._finished("unpack", log, code, begin)
        # In a container debootstrap makes this a link to /proc, which seen from outside the root is this host's own.
        if (self.root / "proc").is_symlink():
            (self.root / "proc").unlink()
            (self.root / "proc").mkdir()
        for name in ("resolv.conf", "hosts"):
            (self.root / "etc" / name).write_bytes((Path("/etc") / name).read_bytes())

    def _configure(self) -> None:
        """The packages' own scripts, emulated."""
        log = self._logs / "configure.log"
        begin = time.monotonic()
        with log.open("wb") as output:
            # A user namespace cannot make device nodes; debootstrap does not insist on them where this is set.
            code = (
                Entrance(self.root, self.board, None)
                .start(["/debootstrap/debootstrap", "--second-stage"], output, ["container=lxc"])
                .wait()
            )
        self._finished("configure", log, code, begin)

    def _borrow_certificates(self) -> None:
        """Trust whom this host trusts, so that pip reaches what it reaches here."""
        if (Path("/") / _CERTIFICATES).exists():
            shutil.copyfile(Path("/") / _CERTIFICATES, self.root / _CERTIFICATES)

    def _finished(self, name: str, log: Path, code: int, begin: float) -> str:
        text = log.read_text(errors="replace")
        if code != 0:
            last = "\n".join(text.splitlines()[-25:])
            raise EmulationError(f"{name} failed with code {code}; its last lines, of {log}:\n{last}")
        say(f"{name}: {time.monotonic() - begin:.0f} s")
        return text


def pip_environment() -> list[str]:
    """What pip inside is told, as `NAME=value`."""
    passed = [f"{name}={os.environ[name]}" for name in _PIP_SETTINGS if name in os.environ]
    return [f"PIP_CERT=/{_CERTIFICATES}", "PIP_DISABLE_PIP_VERSION_CHECK=1", *passed]


def say(line: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def _check_host(board: Board) -> None:
    if os.geteuid() != 0:
        raise EmulationError("an emulated board needs root: it makes a file system root; run it with sudo")
    missing = [name for name in ("debootstrap", "unshare") if shutil.which(name) is None]
    if missing or not (registered(board) or registration(board).exists()) or not _KEYRING.exists():
        raise EmulationError("run: apt-get install debootstrap debian-archive-keyring qemu-user-static util-linux")
