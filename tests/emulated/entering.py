"""Running commands inside the root of an emulated board, with nothing registered or mounted on the host for it.

The command gets namespaces of its own (mounts, processes, host name) and, where the host has not registered the
emulator itself, a user namespace with a private `binfmt_misc`, which Linux has from 6.7 on. The network is the host's,
so the loopback reaches a broker there. What runs inside ends with the process that entered.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
from boards import Board
from rigs import waiting

_SCRIPT = Path(__file__).with_name("enter.sh")
_MAPPING = "0 0 65536\n"
_NAMESPACE_TIMEOUT_S = 20.0
#: Waits until it is root in its new user namespace; the second exec gives it the capabilities.
_WAIT_MAPPED = 'until grep -q . /proc/self/gid_map; do sleep 0.01; done; exec /bin/bash "$0" "$@"'


@dataclass(frozen=True, slots=True)
class Entrance:
    """A root folder and the board that it is the root of."""

    root: Path
    board: Board
    #: Files of the board's looks; None while the root is made.
    looks: Path | None
    #: Folders and files of the host by their path inside.
    bindings: Mapping[Path, str] = field(default_factory=dict)

    def start(
        self,
        command: Sequence[str],
        output: IO[bytes] | int | None = None,
        environment: Iterable[str] = (),
    ) -> subprocess.Popen[bytes]:
        """The command inside, started; its standard error goes where its output goes."""
        private = not registered(self.board)
        namespaces = ["--mount", "--pid", "--uts", "--fork", "--kill-child", "--propagation", "private"]
        arguments = [
            *("unshare", *(["--user"] if private else []), *namespaces),
            *(["/bin/bash", "-c", _WAIT_MAPPED] if private else ["/bin/bash"]),
            *(str(_SCRIPT), str(self.root), str(registration(self.board)) if private else ""),
            str(self.looks or ""),
            "\n".join(f"{source}\t{target}" for source, target in self.bindings.items()),
            *(*environment, *command),
        ]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "USER": "root",
                "LANG": "C.UTF-8",
                "QEMU_CPU": self.board.processor,
            },
            start_new_session=True,
        )
        if private:
            try:
                _map_root(process)
            except BaseException:
                process.kill()
                process.wait()
                raise
        return process


def registered(board: Board) -> bool:
    """Whether the host itself runs this board's programs in any root."""
    try:
        text = Path(f"/proc/sys/fs/binfmt_misc/qemu-{board.emulator}").read_text()
    except OSError:
        return False
    return any(line.startswith("flags:") and "F" in line for line in text.splitlines())


def registration(board: Board) -> Path:
    """The emulator's registration as Debian's package ships it."""
    return Path(f"/usr/lib/binfmt.d/qemu-{board.emulator}.conf")


def stop(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    """Ask what was started to end, as a service manager does; kill it where it does not. Returns its exit code."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        for member in reversed(waiting.tree(process.pid)):
            with contextlib.suppress(psutil.Error):
                member.kill()
        return process.wait()


def _map_root(process: subprocess.Popen[bytes]) -> None:
    """Give the new user namespace this one's users, as soon as there is one."""
    own = os.readlink("/proc/self/ns/user")
    give_up = time.monotonic() + _NAMESPACE_TIMEOUT_S
    while time.monotonic() < give_up and process.poll() is None:
        if os.readlink(f"/proc/{process.pid}/ns/user") != own:
            for file in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{file}").write_text(_MAPPING)
            return
        time.sleep(0.005)
    raise RuntimeError("the emulated root could not be entered: no user namespace was made")
