"""Run orders in the measuring child: it is started when needed, kept warm, and killed if it hangs."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from pydantic import ValidationError

from fleetnas.agent.host.installed_code import InstalledCode
from fleetnas.agent.measuring.framing import BadFrameError, FrameDecoder, write_frame
from fleetnas.agent.measuring.host_lock import MAX_WAIT_S
from fleetnas.agent.measuring.messages import INTERIM_REPLIES, FailedReply, Order, PhaseReply, Reply, decode_reply
from fleetnas.agent.measuring.scratch import ScratchFolder, remove_abandoned
from fleetnas.fleet_protocol.child_process import child_environment, python_command
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.folders import temporary_folder

#: After these the child's memory can no longer be trusted, and the next order gets a fresh one.
_FATAL_REASONS = frozenset({"out_of_memory", "internal"})
_READ_BYTES = 64 * 1024
_STDERR_TAIL_BYTES = 300
_EXIT_TIMEOUT_S = 5.0


class Measurer(Protocol):
    """Executes one order at a time, in another process."""

    def submit(self, order: Order) -> None:
        """Begin an order; only while no other is at work."""

    def poll(self, timeout_s: float) -> Reply | None:
        """Return the next reply, waiting up to `timeout_s`; None if there is none. An order ends with a final reply."""

    def kill(self) -> None:
        """Stop the order at once; no reply follows."""

    def close(self) -> None:
        """Free what is kept warm; the next order starts a new process."""


def replies_of(measurer: Measurer, limit_s: float) -> Iterator[Reply]:
    """Yield the replies to the order at work, the final one last; end without it after `limit_s` s without a reply.

    While the child waits for the host's lock, which another agent may hold for long, the lock's own limit is added.
    """
    waits = False
    while True:
        reply = measurer.poll(limit_s + (MAX_WAIT_S if waits else 0.0))
        if reply is None:
            return
        waits = isinstance(reply, PhaseReply) and reply.phase == "waiting"
        yield reply
        if not isinstance(reply, INTERIM_REPLIES):
            return


def child_command(lock_path: Path, memory_limit_bytes: int = 0, engine_folder: Path | None = None) -> list[str]:
    """Return the command that starts the measuring child; compiled engines are kept in `engine_folder`."""
    return python_command(
        "fleetnas.agent.measuring.child",
        "main",
        "--lock",
        str(lock_path),
        "--parent",
        str(os.getpid()),
        "--memory-limit",
        str(memory_limit_bytes),
        *(("--engines", str(engine_folder)) if engine_folder is not None else ()),
    )


class Worker:
    """Executes orders in a child process; a `Measurer`."""

    def __init__(self, command: Sequence[str], exit_timeout_s: float = _EXIT_TIMEOUT_S) -> None:
        """Start the child with `command`; one that should end is killed after `exit_timeout_s` s."""
        self._command = list(command)
        self._exit_timeout_s = exit_timeout_s
        self._code = InstalledCode()
        self._process: subprocess.Popen[bytes] | None = None
        self._decoder = FrameDecoder()
        self._replies: deque[Reply] = deque()
        self._stderr: IO[bytes] | None = None
        self._scratch: ScratchFolder | None = None
        self._oom_kills = 0
        self._order: bytes | None = None
        self._answered = False
        self.busy = False

    @property
    def pid(self) -> int | None:
        """Process id of the child, if one lives."""
        return self._process.pid if self._process is not None else None

    def submit(self, order: Order) -> None:
        """Send an order to the child, which is started if none lives.

        Raises `RuntimeError` while another order is at work, `CodeReplacedError` if a new child would run other code.
        """
        if self.busy:
            raise RuntimeError("the measuring child executes one order at a time")
        if self._process is not None and self._process.poll() is not None:
            self.kill()
        if self._process is None:
            self._start()
        self._order = order.model_dump_json().encode()
        self._answered = False
        self._oom_kills = _kernel_oom_kills()
        self.busy = True
        # If writing fails, the child died while idle: reading notices it.
        with contextlib.suppress(OSError):
            self._send(self._order)

    def poll(self, timeout_s: float) -> Reply | None:
        """Return the next reply, waiting up to `timeout_s`; a child that dies or hangs up gives a `FailedReply`.

        Raises `CodeReplacedError` instead of a `FailedReply` if the code was replaced: the failure says nothing then.
        """
        give_up = time.monotonic() + timeout_s
        left_s = timeout_s
        while not self._replies and self._process is not None and self.busy and left_s >= 0:
            self._receive(left_s)
            left_s = give_up - time.monotonic()
        if not self._replies:
            return None
        reply = self._replies.popleft()
        if not isinstance(reply, INTERIM_REPLIES):
            self.busy = False
            if isinstance(reply, FailedReply):
                if reply.reason in _FATAL_REASONS:
                    self.kill()
                self._code.check()
        return reply

    def kill(self) -> None:
        """Kill the child and the programs that it started."""
        if self._process is not None:
            self._forget()
        self.busy = False

    def close(self) -> None:
        """End an idle child by closing its input; kill it if that takes too long or it is at work."""
        if self._process is not None and not self.busy and self._process.stdin is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.stdin.close()
                self._process.wait(self._exit_timeout_s)
        self.kill()

    def _start(self) -> None:
        self._code.check()
        temporary_folder()  # raises with the next action if there is none
        remove_abandoned()
        self._scratch = ScratchFolder.make()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=child_environment({"TMPDIR": str(self._scratch.path)}),
                # A process group of its own: programs that it starts die with it, and Ctrl-C reaches the agent alone.
                start_new_session=True,
            )
        except OSError:
            self._scratch.remove()
            raise
        self._decoder = FrameDecoder()
        self._replies.clear()

    def _send(self, payload: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        write_frame(self._process.stdin, payload)

    def _receive(self, timeout_s: float) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        if not select.select([pipe], [], [], timeout_s)[0]:
            return
        data = os.read(pipe, _READ_BYTES)
        if not data:
            reply = self._exit_reason()
            if self._order is not None and not self._answered:
                # It died before it took the order, while idle or starting: not because of the order. Retry once.
                order, self._order = self._order, None
                self._start()
                with contextlib.suppress(OSError):
                    self._send(order)
            else:
                self._replies.append(reply)
            return
        self._answered = True
        try:
            self._replies.extend(decode_reply(frame) for frame in self._decoder.feed(data))
        except (BadFrameError, ValidationError) as error:
            self.kill()
            self._replies.append(
                FailedReply(
                    reason="bad_output", detail=f"the measuring child wrote an invalid reply: {reason_of(error)}"[:500]
                )
            )

    def _exit_reason(self) -> FailedReply:
        """Find out why the child ended, from its exit status, the kernel's counter and its standard error."""
        assert self._process is not None
        try:
            status = self._process.wait(self._exit_timeout_s)
        except subprocess.TimeoutExpired:  # it closed its output and lives on
            self.kill()
            return FailedReply(reason="bad_output", detail="the measuring child closed its output without a reply")
        tail = self._stderr_tail()
        self._forget()
        out_of_memory = (status == -signal.SIGKILL and _kernel_oom_kills() > self._oom_kills) or any(
            text in tail for text in ("MemoryError", "bad_alloc")
        )
        how = f"was ended by signal {_signal_name(-status)}" if status < 0 else f"exited with code {status}"
        detail = f"the measuring child {how}" + (f"; it last wrote: {tail}" if tail else "")
        return FailedReply(reason="out_of_memory" if out_of_memory else "crashed", detail=detail[:500])

    def _stderr_tail(self) -> str:
        if self._stderr is None:
            return ""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
        return " ".join(self._stderr.read().decode(errors="replace").split())

    def _forget(self) -> None:
        assert self._process is not None
        # The group may outlive its leader: the programs that the child had started.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self._scratch is not None:
            self._scratch.remove()
        self._process = self._stderr = self._scratch = None


def _kernel_oom_kills() -> int:
    """Return how many processes the kernel has killed for memory since it booted; 0 if it does not tell."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
