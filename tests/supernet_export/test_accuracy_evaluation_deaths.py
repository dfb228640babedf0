"""`fleetnas accuracy evaluate` loses at most the work on one subnet, whichever of its processes is killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")

from rigs import evaluations, waiting
from rigs.untrained_supernet import write_untrained

from fleetnas.supernet_export.export import export_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.supernet"
    export_digits(path)
    return path


@pytest.fixture
def started() -> Iterator[list]:
    processes: list = []
    yield processes
    for process in processes:
        evaluations.end(process)


def test_a_killed_worker_costs_no_subnet(tmp_path, digits, started):
    output = tmp_path / "evaluated.jsonl"
    process = evaluations.start(digits, output, "-n", "14", "--workers", "2")
    started.append(process)
    for done in (1, 4):
        waiting.until(lambda done=done: len(evaluations.lines(output)) >= done, process, output)
        waiting.until(lambda: evaluations.workers(process), process)[0].kill()
    evaluations.finish(process)
    found = evaluations.lines(output)
    assert [line["index"] for line in found] == list(range(14))
    assert all("accuracy" in line for line in found)


def test_a_subnet_that_kills_its_workers_is_left_alone(tmp_path, started):
    bundle = write_untrained(tmp_path / "small.supernet")
    train, val = evaluations.write_images(tmp_path / "train"), evaluations.write_images(tmp_path / "val", seed=1)
    images = ["--images", val, "--calibration-images", train]
    output = tmp_path / "evaluated.jsonl"
    process = evaluations.start(bundle, output, *images, "-n", "3", "--workers", "1")
    started.append(process)
    seen: set[int] = set()
    for _ in range(2):
        worker = waiting.until(
            lambda: next((one for one in evaluations.workers(process) if one.pid not in seen), None), process
        )
        seen.add(worker.pid)
        worker.kill()
    out, _ = waiting.outputs(process)
    assert process.returncode == 1
    assert "1 subnet failed" in out
    found = evaluations.lines(output)
    assert [line.get("failed") for line in found] == ["its worker process died 2 times", None, None]
    again = evaluations.start(bundle, output, *images, "-n", "3", "--workers", "1")
    started.append(again)
    waiting.outputs(again)
    assert again.returncode == 1  # the failed subnet keeps its line
    assert evaluations.lines(output) == found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_evaluation_that_is_ended_keeps_its_lines(tmp_path, digits, started, number):
    output = tmp_path / "evaluated.jsonl"
    process = evaluations.start(digits, output, "-n", "30", "--workers", "2")
    started.append(process)
    waiting.until(lambda: evaluations.lines(output), process, output)
    workers = evaluations.workers(process)
    assert workers
    process.send_signal(number)
    _, err = waiting.outputs(process)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert "the same command continues" in err
    for worker in workers:
        waiting.until(lambda worker=worker: waiting.gone(worker.pid), what="a worker outlived its evaluation")
    kept = evaluations.lines(output)
    assert 0 < len(kept) < 30
