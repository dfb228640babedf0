"""Loads, times and closes sessions of one model file at the command of `session_variance.py`, in a process of its own.

Reads one command per line of standard input, in JSON: `load`, `turn` with the seconds that it lasts, `pages`, `close`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from session_pages import PageWatch

from fleetnas.agent.host.unused_memory import return_unused_memory
from fleetnas.agent.runtimes.base import TensorSpec, random_tensors
from fleetnas.supernet_export.interpreters.litert import open_interpreter
from fleetnas.supernet_export.interpreters.onnxruntime import EXACT_INT8, import_onnxruntime


def load_onnxruntime(model: bytes, changes: frozenset[str]) -> Callable[[], Any]:
    """As the agent loads it, but for the `changes`."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT_INT8)
    options.enable_cpu_mem_arena = "no_arena" not in changes
    options.enable_mem_pattern = "no_pattern" not in changes
    if "no_prepacking" in changes:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if "device_allocator" in changes:
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    item = session.get_inputs()[0]
    spec = TensorSpec(item.name, tuple(item.shape), np.dtype(np.float32))
    feeds = {spec.name: random_tensors([spec])[0]}
    names = [output.name for output in session.get_outputs()]
    if "bound_buffers" not in changes:
        return lambda: session.run(names, feeds)
    binding = session.io_binding()
    binding.bind_ortvalue_input(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(feeds[spec.name]))
    output = session.get_outputs()[0]
    binding.bind_ortvalue_output(
        output.name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
    )
    return lambda: session.run_with_iobinding(binding)


def load_litert(model: bytes, changes: frozenset[str]) -> Callable[[], Any]:
    """As the agent loads it."""
    del changes
    interpreter = open_interpreter(model, threads=1)
    item = interpreter.get_input_details()[0]
    spec = TensorSpec(item["name"], tuple(int(side) for side in item["shape"]), np.dtype(item["dtype"]))
    interpreter.set_tensor(item["index"], random_tensors([spec])[0])
    invoke: Callable[[], Any] = interpreter.invoke
    return invoke


LOAD = {"onnxruntime": load_onnxruntime, "litert": load_litert}


def turn_ms(run: Callable[[], Any], seconds: float, clock_ns: Callable[[], int]) -> list[float]:
    """Latency of each inference; the first does not count, as caches hold the model that ran before."""
    run()
    times: list[float] = []
    begin = clock_ns()
    while not times or clock_ns() - begin < 1e9 * seconds:
        start = clock_ns()
        run()
        times.append((clock_ns() - start) / 1e6)
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("runtime", choices=LOAD)
    parser.add_argument("--change", action="append", default=[])
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    given = parser.parse_args()
    changes = frozenset(given.change)
    clock_ns = time.thread_time_ns if given.clock == "cpu" else time.perf_counter_ns
    if "one_core" in changes:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a runtime may greet on standard output
    gc.disable()
    model = given.model.read_bytes()
    run: Callable[[], Any] | None = None
    pages = PageWatch()
    for line in sys.stdin:
        command = json.loads(line)
        reply: list[float] = []
        if command["op"] == "load":
            if "kept_memory" not in changes:
                return_unused_memory()
            run = LOAD[given.runtime](model, changes)
            for _ in range(3):
                run()
        elif command["op"] == "pages":
            reply = pages.same_share()
        elif command["op"] == "close":
            run = None
            gc.collect()
        else:
            assert run is not None
            reply = turn_ms(run, command["seconds"], clock_ns)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
