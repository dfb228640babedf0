"""`fleetnas accuracy evaluate`: which subnets it draws, their figures, continued files, and faults of its input."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")

from rigs import evaluations
from rigs.command_line import fleetnas
from rigs.untrained_supernet import write_untrained

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.evaluation_file import EvaluationFile, parse_header, supernet_digest
from fleetnas.supernet_export.evaluation.images import ImageFolder, open_images
from fleetnas.supernet_export.evaluation.prepared_images import PreparedImages
from fleetnas.supernet_export.evaluation.sampling import draw_subnets
from fleetnas.supernet_export.evaluation.subnets import evaluate_subnet
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = DigitsSpace()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.supernet"
    export_digits(path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A bundle with few images, and the options that name them."""
    folder = tmp_path_factory.mktemp("small")
    write_untrained(folder / "small.supernet")
    images = evaluations.write_images(folder / "val")
    calibration = evaluations.write_images(folder / "train", count=6, seed=1)
    return folder / "small.supernet", ["--images", str(images), "--calibration-images", str(calibration)]


# -- which subnets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["spread", "uniform", "both"])
def test_subnets_are_distinct_and_the_same_for_one_seed(sampling):
    drawn = draw_subnets(SPACE, 200, sampling, 3)
    assert len({subnet.architecture.fingerprint for subnet in drawn}) == 200
    assert [subnet.index for subnet in drawn] == list(range(200))
    assert drawn == draw_subnets(SPACE, 200, sampling, 3)
    assert drawn != draw_subnets(SPACE, 200, sampling, 4)
    kinds = {subnet.drawn for subnet in drawn[:20]}
    assert kinds == ({"spread", "uniform"} if sampling == "both" else {sampling})
    assert drawn[0].macs == SPACE.macs(SPACE.encode([drawn[0].architecture]))[0]


@pytest.mark.parametrize("sampling", ["spread", "uniform", "both"])
def test_a_longer_list_begins_like_a_shorter_one(sampling):
    """So that the command with a larger -n continues a file."""
    assert draw_subnets(SPACE, 500, sampling, 3)[:130] == draw_subnets(SPACE, 130, sampling, 3)


def test_a_small_space_gives_all_its_subnets_once():
    space = make_space("compofa", {"resolutions": [224]})
    drawn = draw_subnets(space, 1000, "uniform", 0)
    assert len(drawn) == space.size == 243


# -- their figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["onnxruntime fp32", "onnxruntime int8", "litert int8"])
def test_figures_are_those_of_evaluate(capsys, tmp_path, small, kind):
    runtime, precision = kind.split()
    if runtime == "litert":
        pytest.importorskip("ai_edge_litert")
    bundle, images = small
    setting = ["--runtime", runtime, "--precision", precision]
    output = tmp_path / "evaluated.jsonl"
    many = [*images, *setting, "-n", "3", "--workers", "1", "-o", str(output)]
    assert fleetnas(capsys, "accuracy", "evaluate", str(bundle), *many)[0] == 0
    for line in evaluations.lines(output):
        one = ["evaluate", str(bundle), json.dumps(line["architecture"]), *images, *setting, "--json"]
        code, out, _ = fleetnas(capsys, *one)
        alone = json.loads(out)
        assert code == 0
        assert line["accuracy"] == alone["accuracy"]
        assert (line["images"], line["macs"]) == (40, alone["macs"])
        assert (line["accuracy_even"] + line["accuracy_odd"]) / 2 == pytest.approx(line["accuracy"])
        assert line["cross_entropy"] > 0
    assert not list(tmp_path.glob("*.images"))  # prepared images are removed at the end


def test_a_supernet_of_digits_brings_its_images_along(capsys, tmp_path, digits):
    output = tmp_path / "evaluated.jsonl"
    code, out, err = fleetnas(
        capsys, "accuracy", "evaluate", str(digits), "-n", "2", "--workers", "1", "-o", str(output)
    )
    assert code == 0
    assert "2 subnets" in out
    assert "2 of 2 subnets evaluated" in err
    assert [line["images"] for line in evaluations.lines(output)] == [600, 600]


def test_prepared_images_are_those_of_a_winners_calibration(tmp_path, small):
    bundle, (_, val, _, train) = small
    opened = SupernetBundle.open(bundle)
    calibration, evaluation = open_images(opened, Path(train)), open_images(opened, Path(val))
    prepared = PreparedImages(calibration, evaluation, tmp_path / "prepared")
    wanted = list(calibration.calibration_batches(16, np.random.default_rng(0)))
    found = list(prepared.calibration_batches(16))
    assert [len(batch) for batch in found] == [60]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(wanted))
    np.testing.assert_array_equal(prepared.evaluation(12), np.stack(list(evaluation.images(12))))
    assert sorted(path.name for path in (tmp_path / "prepared").glob("*.npy")) == [
        "calibration-16.npy",
        "evaluation-12.npy",
    ]
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be prepared in .*file.*--cache DIR"):
        PreparedImages(calibration, evaluation, tmp_path / "file").evaluation(12)
    in_memory = PreparedImages(calibration, evaluation, calibration_count=7)
    np.testing.assert_array_equal(next(in_memory.calibration_batches(16)), found[0][:7])
    np.testing.assert_array_equal(in_memory.evaluation(12), prepared.evaluation(12))


def test_shards_together_are_the_whole(capsys, tmp_path, small):
    bundle, images = small
    for shard in ("0/1", "0/2", "1/2"):
        options = [*images, "-n", "5", "--workers", "2" if shard == "0/1" else "1", "--shard", shard]
        output = tmp_path / f"{shard.replace('/', '-')}.jsonl"
        assert fleetnas(capsys, "accuracy", "evaluate", str(bundle), "-o", str(output), *options)[0] == 0
    whole = evaluations.lines(tmp_path / "0-1.jsonl")
    parts = [evaluations.lines(tmp_path / f"{number}-2.jsonl") for number in range(2)]
    assert [line["index"] for line in whole] == list(range(5))
    assert [len(part) for part in parts] == [3, 2]
    assert sorted((line for part in parts for line in part), key=lambda line: line["index"]) == whole


# -- continued files ------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_continues(capsys, tmp_path, small):
    bundle, images = small
    output = tmp_path / "evaluated.jsonl"
    command = ["accuracy", "evaluate", str(bundle), *images, "-n", "5", "--workers", "1", "-o", str(output)]
    assert fleetnas(capsys, *command)[0] == 0
    whole, content = evaluations.lines(output), output.read_bytes()
    for kept in (len(content) - 7, content.index(b"\n") + 1, 30):
        output.write_bytes(content[:kept])
        before = evaluations.lines(output) if kept > 100 else []
        code, _, err = fleetnas(capsys, *command)
        assert code == 0
        assert f"{len(before)} of 5 subnets evaluated" in err
        assert evaluations.lines(output) == whole
    changed = output.read_bytes()
    assert fleetnas(capsys, *command)[0] == 0  # nothing is left to do
    assert output.read_bytes() == changed


def test_a_larger_number_of_subnets_continues_a_file(capsys, tmp_path, small):
    bundle, images = small
    output, at_once = tmp_path / "evaluated.jsonl", tmp_path / "at_once.jsonl"
    command = ["accuracy", "evaluate", str(bundle), *images, "--workers", "1"]
    assert fleetnas(capsys, *command, "-n", "2", "-o", str(output))[0] == 0
    begun = output.read_bytes()
    code, out, err = fleetnas(capsys, *command, "-n", "4", "-o", str(output))
    assert code == 0
    assert "2 of 4 subnets evaluated" in err
    assert "4 subnets, top-1" in out
    assert output.read_bytes().startswith(begun)
    assert fleetnas(capsys, *command, "-n", "4", "-o", str(at_once))[0] == 0
    assert evaluations.lines(output) == evaluations.lines(at_once)
    content = output.read_bytes()
    code, _, err = fleetnas(capsys, *command, "-n", "3", "-o", str(output))
    assert code == 0
    assert "3 of 3 subnets evaluated" in err
    assert output.read_bytes() == content


def test_folders_may_lack_classes_where_that_is_said(capsys, tmp_path):
    """The classes that are there keep their places among the logits."""
    bundle = write_untrained(tmp_path / "named.supernet", class_names=tuple("0123456789"))
    images = evaluations.write_images(tmp_path / "val")
    calibration = evaluations.write_images(tmp_path / "train", count=6, seed=1)
    shutil.rmtree(images / "3")
    output = tmp_path / "some.jsonl"
    command = ["accuracy", "evaluate", str(bundle), "-n", "2", "--workers", "1", "-o", str(output)]
    command += ["--images", str(images), "--calibration-images", str(calibration)]
    code, _, err = fleetnas(capsys, *command)
    assert code == 2
    assert "'3' has no folder" in err
    assert fleetnas(capsys, *command, "--some-classes")[0] == 0
    opened = SupernetBundle.open(bundle)
    sources = [open_images(opened, folder, some_classes=True) for folder in (calibration, images)]
    labels = sources[1].labels
    assert (len(labels), set(labels)) == (36, {0, 1, 2, 4, 5, 6, 7, 8, 9})
    for line in evaluations.lines(output):
        architecture = Architecture.model_validate(line["architecture"])
        scores = evaluate_subnet(partial(slice_subnet, opened), architecture, PreparedImages(*sources))
        assert (line["images"], line["accuracy"]) == (36, scores.accuracy)


def test_a_file_of_other_inputs_is_refused(capsys, tmp_path, small, digits):
    bundle, images = small
    output = tmp_path / "evaluated.jsonl"
    command = ["accuracy", "evaluate", str(bundle), *images, "-n", "2", "--workers", "1", "-o", str(output)]
    assert fleetnas(capsys, *command)[0] == 0
    content = output.read_bytes()
    more = evaluations.write_images(tmp_path / "more", count=5)
    for change, words in (
        (["--seed", "1", "--shard", "0/2"], "--seed (0 there, 1 here); --shard (0/1 there, 0/2 here)"),
        (["--calibration-count", "9"], "--calibration-count (2000 there, 9 here)"),
        (["--precision", "int8"], "--precision (fp32 there, int8 here)"),
        (["--images", str(more)], "the images (40 images"),
    ):
        code, _, err = fleetnas(capsys, *command, *change)
        assert code == 2
        assert words in err
    code, _, err = fleetnas(capsys, *command[:2], str(digits), *command[3:])
    assert code == 2
    assert "the supernet's weights" in err
    for other in ("a,b\n1,2\n", '{"index": 0}\n', "no line"):
        output.write_text(other)
        assert fleetnas(capsys, *command)[0] == 2
        assert output.read_text() == other
    with EvaluationFile(output_of_another := tmp_path / "busy.jsonl", parse_header(content.decode().splitlines()[0])):
        code, _, err = fleetnas(capsys, *command[:-1], str(output_of_another))
    assert code == 2
    assert "is being written by another process" in err
    output.write_bytes(content + b'{"index": 1}\n')
    code, _, err = fleetnas(capsys, *command)
    assert code == 2
    assert "line 4 is no evaluated subnet" in err


# -- faults of the input ---------------------------------------------------------------------------------------------


def test_bad_folders_and_options_are_refused_before_any_work(capsys, tmp_path, small, digits):
    bundle, images = small
    output = tmp_path / "evaluated.jsonl"

    def refused(*arguments: str, path: Path = bundle) -> str:
        code, _, err = fleetnas(capsys, "accuracy", "evaluate", str(path), "-n", "2", "-o", str(output), *arguments)
        assert code == 2
        assert "Traceback" not in err
        assert not output.exists()
        return err

    assert "no folder of images" in refused("--images", str(tmp_path / "none"), *images[2:])
    (tmp_path / "empty").mkdir()
    assert "10 classes" in refused("--images", str(tmp_path / "empty"), *images[2:])
    broken = evaluations.write_images(tmp_path / "broken")
    (broken / "3" / "1.png").write_bytes(b"no image")
    assert "3/1.png" in refused("--images", str(broken), *images[2:])
    for shard in ("3/3", "1", "a/2", "-1/2", "0/0"):
        assert "give i/n with i from 0 to n - 1" in refused(f"--shard={shard}", path=digits)
    assert "leave out --workers" in refused("--scheduler", "tcp://127.0.0.1:1", "--workers", "1", path=digits)


def test_a_cache_where_no_folder_can_be_made_ends_the_command_in_one_line(capsys, tmp_path, small):
    bundle, images = small
    (tmp_path / "file").touch()
    command = ["accuracy", "evaluate", str(bundle), "-n", "2", "-o", str(tmp_path / "a.jsonl"), *images]
    code, _, err = fleetnas(capsys, *command, "--workers", "1", "--cache", str(tmp_path / "file"))
    assert code == 2
    assert "cannot be prepared in" in err
    assert evaluations.lines(tmp_path / "a.jsonl") == []


def test_other_supernets_than_digits_need_both_folders(capsys, tmp_path, small):
    from fleetnas.supernet_export.bundle import write_bundle

    opened = SupernetBundle.open(small[0])
    manifest = opened.manifest.model_copy(update={"dataset": "birds"})
    write_bundle(tmp_path / "birds.supernet", manifest, {name: opened.tensor(name) for name in opened.names})
    code, _, err = fleetnas(
        capsys, "accuracy", "evaluate", str(tmp_path / "birds.supernet"), *small[1][:2], "-o", str(tmp_path / "a.jsonl")
    )
    assert code == 2
    assert "--calibration-images DIR" in err


def test_the_digest_of_images_tells_content_names_and_classes(tmp_path, small):
    preprocessing = SupernetBundle.open(small[0]).manifest.preprocessing

    def digest(folder: Path) -> str:
        return ImageFolder(folder, preprocessing, 10).digest()

    first, second = (evaluations.write_images(tmp_path / name) for name in ("first", "second"))
    assert digest(first) == digest(second)
    (second / "0" / "0.png").rename(second / "0" / "9.png")
    assert digest(first) != digest(second)
    (second / "0" / "9.png").rename(second / "0" / "0.png")
    (second / "0" / "0.png").write_bytes((first / "0" / "1.png").read_bytes())
    assert digest(first) != digest(second)


def test_the_digest_of_a_supernet_is_that_of_its_weights(small, digits):
    assert supernet_digest(SupernetBundle.open(small[0])) != supernet_digest(SupernetBundle.open(digits))
