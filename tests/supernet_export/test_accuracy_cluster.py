"""`fleetnas accuracy evaluate --scheduler` on a real Dask scheduler with real workers."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")
pytest.importorskip("distributed")

from rigs import evaluations, waiting
from rigs.command_line import fleetnas
from rigs.untrained_supernet import write_untrained

from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.cluster_workers import evaluate_on_cluster
from fleetnas.supernet_export.evaluation.evaluation_file import supernet_digest
from fleetnas.supernet_export.evaluation.images import open_images
from fleetnas.supernet_export.evaluation.job import EvaluationJob, worker_of
from fleetnas.supernet_export.evaluation.sampling import draw_subnets
from fleetnas.supernet_export.export import export_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.supernet"
    export_digits(path)
    return path


def job_of(path: Path) -> EvaluationJob:
    """The evaluation of a bundle on the digits that it ships with."""
    opened = SupernetBundle.open(path)
    return EvaluationJob(
        bundle=path,
        supernet_digest=supernet_digest(opened),
        images=None,
        calibration_images=None,
        images_digest=open_images(opened, None).digest(),
        calibration_digest=open_images(opened, None, "calibration").digest(),
        verify=True,
    )


def test_a_cluster_gives_the_local_answers_although_a_worker_is_killed(capsys, tmp_path, digits):
    local, remote = tmp_path / "local.jsonl", tmp_path / "remote.jsonl"
    command = ["accuracy", "evaluate", str(digits), "-n", "10"]
    assert fleetnas(capsys, *command, "--workers", "1", "-o", str(local))[0] == 0
    with evaluations.dask_cluster(tmp_path) as cluster:
        nannies = cluster.nannies
        process = evaluations.start(digits, remote, "-n", "10", "--scheduler", cluster.address)
        try:
            waiting.until(lambda: evaluations.lines(remote), process, *nannies, remote)
            waiting.until(lambda: evaluations.workers(nannies[0]), *nannies)[0].kill()
            evaluations.finish(process)
        finally:
            evaluations.end(process)
    assert evaluations.lines(remote) == evaluations.lines(local)
    assert len(evaluations.lines(local)) == 10


def test_a_lost_scheduler_ends_the_evaluation_with_what_to_do(tmp_path, digits):
    output = tmp_path / "evaluated.jsonl"
    with evaluations.dask_cluster(tmp_path, 1) as cluster:
        process = evaluations.start(digits, output, "-n", "40", "--scheduler", cluster.address)
        try:
            waiting.until(lambda: evaluations.lines(output), process, *cluster.nannies, output)
            cluster.scheduler.kill()
            _, err = waiting.outputs(process)
        finally:
            evaluations.end(process)
    assert process.returncode == 1
    assert "run the command again, which continues" in err
    assert "Traceback" not in err
    assert evaluations.lines(output)


def test_a_scheduler_that_is_lost_while_a_subnet_is_written_down_is_told_in_the_same_words(tmp_path, digits):
    """The next call after it is one to the scheduler itself, not for a result."""
    space = SupernetBundle.open(digits).space
    subnets = draw_subnets(space, 20, "both", seed=1)
    with evaluations.dask_cluster(tmp_path, 1) as cluster:
        found = evaluate_on_cluster(job_of(digits), subnets, cluster.address)
        next(found)
        cluster.scheduler.kill()
        cluster.scheduler.wait()
        with pytest.raises(FleetnasError, match="run the command again, which continues"):
            list(found)


def test_no_scheduler_is_said_at_once(capsys, tmp_path, digits):
    command = ["accuracy", "evaluate", str(digits), "-o", str(tmp_path / "a.jsonl"), "--scheduler"]
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        code, _, err = fleetnas(capsys, *command, address)
        assert code == 2
        assert f"no Dask scheduler answers at {address}" in err
        assert "Traceback" not in err


def test_workers_of_other_versions_are_named(capsys, tmp_path, digits):
    information = tmp_path / "packages" / "fleetnas-9.9.9.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fleetnas\nVersion: 9.9.9\n")
    with evaluations.dask_cluster(tmp_path, 1, [information.parent]) as cluster:
        command = ["accuracy", "evaluate", str(digits), "-o", str(tmp_path / "a.jsonl"), "--scheduler", cluster.address]
        code, _, err = fleetnas(capsys, *command)
    assert code == 2
    assert "has other versions: fleetnas 9.9.9 there" in err


def test_a_worker_refuses_files_of_other_content(tmp_path, digits):
    job = replace(job_of(digits), images_digest="0" * 64)
    with pytest.raises(UsageError, match="other content on a worker than here"):
        worker_of(job)
    missing = EvaluationJob(tmp_path / "none.supernet", "", None, None, "", "", verify=True)
    with pytest.raises(UsageError, match=r"a worker cannot open .*none\.supernet"):
        worker_of(missing)


def test_a_worker_names_the_file_that_it_cannot_read(tmp_path, monkeypatch):
    """An error of the system there is not one of the connection to the scheduler."""
    write_untrained(tmp_path / "small.supernet")
    images = evaluations.write_images(tmp_path / "val")
    faulty, read_bytes = images / "3" / "1.png", Path.read_bytes

    def read(path: Path) -> bytes:
        if path == faulty:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    job = EvaluationJob(tmp_path / "small.supernet", "", images, images, "", "", verify=True)
    with pytest.raises(UsageError, match=r"a worker cannot open .*Input/output error.*1\.png"):
        worker_of(job)
