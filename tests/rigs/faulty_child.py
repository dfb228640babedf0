"""A measuring child that breaks in the way its orders name; everything but the inference is the real child's.

The "model path" of a bench order is the fault. Run by `test_worker.py`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fleetnas.agent.measuring.child import _limit_memory, claim_pipes, serve
from fleetnas.agent.measuring.messages import BenchOrder, MeasuredReply, Order, Reply
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.fleet_protocol.messages import Conditions, Phase

MEMORY_LIMIT_BYTES = 400 * 1024**2


def execute(order: Order, say: Callable[[Phase, float], None]) -> Reply:
    assert isinstance(order, BenchOrder)
    say("measuring", 0.5)
    fault = order.model_path
    if fault == "hang":
        while True:
            time.sleep(3600)
    if fault == "segfault":
        ctypes.string_at(0)
    if fault == "memory":
        hoard = [bytearray(50 * 1024**2) for _ in range(100)]
        raise AssertionError(f"{len(hoard)} blocks were allocated beyond the limit")
    if fault == "hoard":
        kept = [b"x" * 25 * 1024**2 for _ in range(12)]
        raise AssertionError(f"{len(kept)} blocks were written to within the limit")
    if fault == "killed":
        os.kill(os.getpid(), 9)
    if fault == "exit":
        sys.stderr.write("the accelerator's driver gave up\n")
        os._exit(3)
    if fault == "rubbish":
        os.write(int(os.environ["REPLY_HANDLE"]), b"Segmentation fault (but only in words)\n" * 3)
        time.sleep(3600)
    if fault == "json":
        payload = b'{"kind":"measured","median_ms":0}'
        os.write(int(os.environ["REPLY_HANDLE"]), b"FNA1" + len(payload).to_bytes(4, "big") + payload)
        time.sleep(3600)
    if fault == "closed":
        os.close(int(os.environ["REPLY_HANDLE"]))
        time.sleep(3600)
    if fault == "chatter":
        os.write(1, b"a library prints to standard output\n" * 1000)
    if fault == "raise":
        raise KeyError("a defect of ours")
    timing = Timing(
        median_ms=1,
        mad_ms=0,
        p90_ms=1,
        min_ms=1,
        runs=1,
        inner_loops=1,
        half_width_percent=0,
        noisy=False,
        times_us=(1000,),
        block_medians_ms=(1,),
        inference_s=0.001,
    )
    return MeasuredReply(
        model_sha256="0" * 64,
        model_bytes=1,
        timing=timing,
        provider="none",
        build_ms=0,
        load_ms=0,
        before=Conditions(),
        after=Conditions(),
        busy_s=0,
        inference_s=0,
    )


if __name__ == "__main__":
    _limit_memory(MEMORY_LIMIT_BYTES)
    orders, replies = claim_pipes()
    os.environ["REPLY_HANDLE"] = str(replies.fileno())
    serve(orders, replies, Path(sys.argv[1]), execute)
