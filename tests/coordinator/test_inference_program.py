"""The program beside the winners: it prepares images as evaluations do, and gives the accuracy of the card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rigs.outcome_examples import campaign_outcome
from rigs.striped_images import CLASSES, COLOUR, write_images, write_supernet

from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
from fleetnas.coordinator.records.outcome import CampaignOutcome, DeviceOutcome, SupernetProvenance, TargetOutcome
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.report import infer
from fleetnas.coordinator.report.artifacts import ArtifactFolder
from fleetnas.coordinator.report.conversion import class_report
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.class_folders import images_below
from fleetnas.supernet_export.evaluation.image_file import SUFFIXES, open_image
from fleetnas.supernet_export.evaluation.image_fit import evaluation_view
from fleetnas.supernet_export.evaluation.images import open_images
from fleetnas.supernet_export.manifest import Preprocessing
from fleetnas.supernet_export.spaces.registry import make_space

pil = pytest.importorskip("PIL.Image")

SETTINGS = (
    RuntimeSetting(),
    RuntimeSetting(precision="int8"),
    RuntimeSetting(runtime="litert", precision="int8"),
)


def device(setting: RuntimeSetting, models: BundleWinnerBuilder, bundle: SupernetBundle, number: int) -> DeviceOutcome:
    """A device with one winner, built and evaluated as a search does."""
    architecture = bundle.space.decode(bundle.space.sample(1, np.random.default_rng(number)))[0]
    model = models.calibrate(architecture, setting)
    answers = models.answers(model, "evaluation")
    assert answers is not None
    target = TargetOutcome(
        5.0,
        architecture=architecture,
        predicted_ms=4.0,
        measured_ms=4.0,
        verified_ms=4.0,
        accuracy=answers.accuracy,
        accuracy_images=answers.images,
        sha256=model.sha256,
        answers=answers,
    )
    return DeviceOutcome(f"board-{number}", setting, SettingStatus.FINISHED, targets=(target,), targets_asked=1)


def outcome_of(bundle: SupernetBundle, *devices: DeviceOutcome) -> CampaignOutcome:
    manifest = bundle.manifest
    supernet = SupernetProvenance(
        "s.supernet",
        bundle.sha256,
        manifest.space,
        "random weights",
        dataset=manifest.dataset,
        class_names=manifest.class_names,
        preprocessing=manifest.preprocessing,
    )
    found = campaign_outcome(*devices)
    return CampaignOutcome(**{**vars(found), "supernet": supernet, "class_names": manifest.class_names})


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "val", 20, seed=1)


@pytest.fixture(scope="module")
def winners(tmp_path_factory: pytest.TempPathFactory, val: Path) -> tuple[Path, CampaignOutcome]:
    """A folder of results with a winner in each of the three kinds of files, and its outcome."""
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("results")
    bundle = write_supernet(folder / "s.supernet", seed=3)
    images = open_images(bundle, val)
    models = BundleWinnerBuilder(bundle, images, images)
    outcome = outcome_of(bundle, *(device(setting, models, bundle, n) for n, setting in enumerate(SETTINGS)))
    artifacts = ArtifactFolder(folder / "out")
    for each in outcome.devices:
        model = models.calibrate(each.targets[0].architecture, each.setting)
        artifacts.add_winner(each, each.targets[0], models.file(model))
    artifacts.write(outcome)
    return folder / "out", outcome


def program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `infer.py` of a folder as a user does elsewhere: nothing of this checkout can be imported."""
    blocked = (
        "import sys, runpy; sys.modules['fleetnas'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", blocked, str(folder / "infer.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder.parent)


@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=[setting.label for setting in SETTINGS])
def test_it_gives_the_accuracy_of_the_card_exactly(
    winners: tuple[Path, CampaignOutcome], val: Path, number: int
) -> None:
    out, outcome = winners
    found = outcome.devices[number]
    answers = found.targets[0].answers
    assert answers is not None
    assert len(set(answers.answers.tolist())) > 1, "a network with one answer would show nothing"
    folder = out / found.device / found.setting.label
    ran = program(folder, str(val))
    assert ran.returncode == 0, ran.stderr
    card = json.loads((folder / "5ms.json").read_text())
    assert f"top-1 accuracy {card['accuracy']!r}: " in ran.stdout
    assert f"its card says {card['accuracy']!r} of 60 images" in ran.stdout
    report = class_report(answers, "evaluation", CLASSES)
    for name in CLASSES:
        assert f"{name}: {report.confusion[name].get(name, 0)} of 20 right\n" in ran.stdout
    assert (folder / "labels.txt").read_text().splitlines() == list(CLASSES)


def test_it_gives_the_probabilities_of_images(winners: tuple[Path, CampaignOutcome], val: Path) -> None:
    out, _ = winners
    folder = out / "board-0" / SETTINGS[0].label
    one = program(folder, str(val / "down" / "000.png"))
    assert (one.returncode, one.stdout.count("%"), one.stdout.count("\n")) == (0, 3, 1)
    shares = [float(part.split()[-2]) for part in one.stdout.split(": ", 1)[1].split(", ")]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)
    many = program(folder, str(val / "down"), "--top", "1")
    assert (many.stdout.count("\n"), many.stdout.count("%")) == (20, 20)
    assert many.stdout.splitlines()[0] == one.stdout.split(", ")[0]


def test_what_is_missing_or_wrong_is_named(winners: tuple[Path, CampaignOutcome], val: Path, tmp_path: Path) -> None:
    out, _ = winners
    source = out / "board-0" / SETTINGS[0].label
    for name in ("infer.py", "5ms.onnx"):
        (tmp_path / name).write_bytes((source / name).read_bytes())

    def said(*arguments: str) -> str:
        ran = program(tmp_path, *arguments)
        assert (ran.returncode, ran.stdout, ran.stderr.count("Traceback")) == (2, "", 0)
        return ran.stderr.splitlines()[-1]

    assert said(str(val)) == "infer.py: 5ms.json is not beside 5ms.onnx; copy the card along with the model"
    card = json.loads((source / "5ms.json").read_text())
    (tmp_path / "5ms.json").write_text(json.dumps({**card, "sha256": "0" * 64}))
    assert said(str(val)) == "infer.py: 5ms.onnx is not the file that 5ms.json describes; copy both again"
    (tmp_path / "5ms.json").write_text(json.dumps(card))
    assert "there is no image or folder" in said(str(val / "nowhere"))
    assert "there is no model file" in said(str(val), "--model", "7ms.onnx")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert "broken.png cannot be read as an image" in said(str(broken))
    strange = tmp_path / "val"
    for name in ("down", "downn"):
        (strange / name).mkdir(parents=True)
    assert "'downn' in" in said(str(strange))


def odd_images(folder: Path) -> list[Path]:
    """Image files of all kinds: deep and shallow, turned, transparent, in odd shapes."""
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (37, 53), dtype=np.uint8), rng.integers(0, 256, (41, 29, 4), dtype=np.uint8)
    turned = pil.Exif()
    turned[0x0112] = 6
    pil.fromarray(grey).save(folder / "grey.png")
    pil.fromarray(rng.integers(0, 65536, (31, 47), dtype=np.uint16)).save(folder / "deep.png")
    pil.fromarray(rng.random((33, 21), dtype=np.float32)).save(folder / "float.tif")
    pil.fromarray(colour).save(folder / "alpha.png")
    pil.fromarray(colour[..., :3]).save(folder / "turned.jpg", exif=turned)
    pil.fromarray(colour).convert("CMYK").save(folder / "cmyk.jpg")
    pil.fromarray(colour[..., :3]).convert("P").save(folder / "palette.png", transparency=3)
    pil.fromarray(grey > 100).save(folder / "bits.png")
    pil.fromarray(rng.integers(0, 256, (3, 200, 3), dtype=np.uint8)).save(folder / "thin.bmp")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_images_are_prepared_to_the_bit_as_in_an_evaluation(
    tmp_path: Path, fit: str, channels: int, interpolation: str
) -> None:
    preprocessing = Preprocessing(
        channels=channels,
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        interpolation=interpolation,  # type: ignore[arg-type]
        fit=fit,  # type: ignore[arg-type]
        crop_fraction=0.875 if fit == "crop" else 1.0,
    )
    for path in odd_images(tmp_path):
        for size in ((24, 24), (24, 32), (64, 40)):
            expected = evaluation_view(open_image(path, channels), size, preprocessing)
            found = infer.prepared(path, size, preprocessing.model_dump(mode="json"))
            if len(expected) != channels:  # deep grey serves all channels of a network for RGB
                assert len(found) == len(expected)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected), (path.name, size)


def test_it_lists_the_images_that_an_evaluation_lists(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.jpeg", ".hidden.png", "sub/c.webp", ".cache/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert infer.images_below(tmp_path) == images_below(tmp_path)
    assert infer.SUFFIXES == SUFFIXES


def test_an_input_that_is_not_square_is_read_from_the_file(tmp_path: Path, val: Path) -> None:
    space = make_space("mbconv", {**write_supernet(tmp_path / "s.supernet").space.options, "aspect": [3, 4]})
    bundle = write_supernet(tmp_path / "wide.supernet", space=space)
    images = open_images(bundle, val)
    models = BundleWinnerBuilder(bundle, images, images)
    outcome = outcome_of(bundle, device(RuntimeSetting(), models, bundle, 0))
    (found,) = outcome.devices
    artifacts = ArtifactFolder(tmp_path / "out")
    path = artifacts.add_winner(
        found, found.targets[0], models.file(models.calibrate(found.targets[0].architecture, found.setting))
    )
    artifacts.write(outcome)
    model = infer.Model(path)
    assert (model.height, model.width) == bundle.space.input_size(found.targets[0].architecture.r)
    assert model.height != model.width
    answers = found.targets[0].answers
    assert answers is not None
    labels = [CLASSES.index(path.parent.name) for path in sorted(val.rglob("*.png"))]
    assert answers.labels.tolist() == labels
    told = [int(np.argmax(model.answer(path))) for path in sorted(val.rglob("*.png"))]
    assert told == answers.answers.tolist()


def test_colours_of_the_example_are_those_of_the_card(winners: tuple[Path, CampaignOutcome]) -> None:
    out, _ = winners
    card = json.loads((out / "board-2" / SETTINGS[2].label / "5ms.json").read_text())
    assert card["supernet"]["preprocessing"] == COLOUR.model_dump(mode="json")
