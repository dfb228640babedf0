"""Run the measuring child: orders on its standard input, replies on its standard output.

It may be killed at any time. It dies with its parent, and the kernel kills it first if memory runs out.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from fleetnas.agent.host.process_lifetime import die_with
from fleetnas.agent.measuring.framing import read_frame, write_frame
from fleetnas.agent.measuring.host_lock import MAX_WAIT_S, HostLockBusyError, hold_host_lock, present_host_lock_path
from fleetnas.agent.measuring.messages import (
    FailedReply,
    LoadedReply,
    Order,
    PhaseReply,
    Reply,
    UnreadyReply,
    WindowReply,
    decode_order,
)
from fleetnas.agent.runtimes.base import ProviderFallbackError
from fleetnas.fleet_protocol.errors import (
    ArchitectureError,
    BundleError,
    FleetnasError,
    MissingDependencyError,
    RuntimeUnavailableError,
    UsageError,
)
from fleetnas.fleet_protocol.messages import FailureReason, Phase

Execute = Callable[[Order, Callable[[Phase, float], None]], Reply]

#: Texts of C++ libraries that ran out of memory.
_OUT_OF_MEMORY_TEXTS = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "cannot allocate memory")


def serve(orders: IO[bytes], replies: IO[bytes], lock_path: Path, execute: Execute, wait_s: float = MAX_WAIT_S) -> None:
    """Answer orders until their stream ends, holding the host's lock during each.

    An order that waited for the lock for `wait_s` s is answered with `UnreadyReply`.
    """

    def write(reply: Reply) -> None:
        write_frame(replies, reply.model_dump_json().encode())

    def report_phase(phase: Phase, fraction: float) -> None:
        write(PhaseReply(phase=phase, fraction=fraction))

    while (payload := read_frame(orders)) is not None:
        reply: Reply
        try:
            order = decode_order(payload)
            path = present_host_lock_path(lock_path)
            waiting = PhaseReply(phase="waiting", detail=f"for the lock {path}, which another process holds")
            with hold_host_lock(path, partial(write, waiting), wait_s):
                report_phase("building", 0.0)
                reply = execute(order, report_phase)
        except HostLockBusyError as error:
            reply = UnreadyReply(reason=str(error))
        except Exception as error:  # noqa: BLE001 - whatever an order raises is its reply
            usage = isinstance(error, UsageError)
            reply = FailedReply(reason=failure_reason(error), detail=_describe(error), usage=usage)
        write(reply)


def failure_reason(error: BaseException) -> FailureReason:
    """Return the reason that an order's exception stands for."""
    kinds: tuple[tuple[type[BaseException], FailureReason], ...] = (
        (MemoryError, "out_of_memory"),
        (ProviderFallbackError, "provider_fallback"),
        (ArchitectureError, "architecture"),
        (BundleError, "bundle"),
    )
    for kind, reason in kinds:
        if isinstance(error, kind):
            return reason
    if any(text in str(error).lower() for text in _OUT_OF_MEMORY_TEXTS):
        return "out_of_memory"
    if isinstance(error, (RuntimeUnavailableError, MissingDependencyError, UsageError)):
        return "runtime"
    return "internal"


def main() -> None:
    """Run the child until its standard input ends; the arguments are those of `child_command`."""
    parser = argparse.ArgumentParser(
        prog="fleetnas.agent.measuring.child", description="Measures for fleetnas-agent; not run by hand."
    )
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--memory-limit", type=int, default=0, help="bytes; 0: none")
    parser.add_argument("--engines", type=Path, help="folder for what accelerators compile")
    arguments = parser.parse_args()
    die_with(arguments.parent, signal.SIGKILL)
    os.umask(0o077)
    _limit_memory(arguments.memory_limit)
    orders, replies = claim_pipes()
    from fleetnas.agent.measuring.order_executor import OrderExecutor

    # The garbage collector runs before each measurement: it need not look through what was imported.
    gc.freeze()

    def report(reply: LoadedReply | WindowReply) -> None:
        write_frame(replies, reply.model_dump_json().encode())

    serve(orders, replies, arguments.lock, OrderExecutor(engine_folder=arguments.engines, report=report).execute)


def claim_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return standard input and output, reserved for frames; output of libraries goes to standard error from now on."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, replies


def _limit_memory(limit_bytes: int) -> None:
    with contextlib.suppress(OSError):  # the file is Linux's; a container may refuse it
        Path("/proc/self/oom_score_adj").write_text("1000")
    if limit_bytes > 0:
        # Data, not address space: accelerators' libraries reserve far more addresses than they ever use.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text if text and isinstance(error, FleetnasError) else f"{type(error).__name__}: {text}")[:500]
