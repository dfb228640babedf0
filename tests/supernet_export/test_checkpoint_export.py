"""Exports of one's own checkpoints: what shapes do not show is said, what contradicts them is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rigs.command_line import fleetnas
from rigs.supernets import random_state_dict
from safetensors.numpy import save_file

from fleetnas.fleet_protocol.errors import CheckpointError, UsageError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.checkpoint_export import CheckpointExport, export_own_checkpoint
from fleetnas.supernet_export.digits.data import DEVIATION, MEAN
from fleetnas.supernet_export.inspection import inspect_file
from fleetnas.supernet_export.manifest import Manifest, Preprocessing, Provenance
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.registry import make_space

OWN: dict[str, Any] = {"classes": 3, "width": 0.25, "kernels": [3, 5], "expands": [2, 4], "depths": [1, 2]}
NAMES = ["ant", "bee", "wasp"]


def save(path: Path, space: DesignSpace, *, transforms: bool = True, metadata: dict[str, str] | None = None) -> Path:
    state = {
        name: array for name, array in random_state_dict(space).items() if transforms or not name.endswith("_matrix")
    }
    save_file(state, path, metadata=metadata)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return save(tmp_path / "own.safetensors", make_space("ofa-mbv3", OWN))


def exported(request: CheckpointExport, folder: Path) -> tuple[Manifest, list[str]]:
    lines: list[str] = []
    export_own_checkpoint(request, folder / "x.supernet", tell=lines.append)
    return SupernetBundle.open(folder / "x.supernet").manifest, lines


def given(*left_out: str) -> dict[str, Any]:
    return {name: value for name, value in OWN.items() if name not in left_out}


def test_classes_and_channels_are_those_of_the_shapes(own: Path, tmp_path: Path) -> None:
    manifest, _ = exported(CheckpointExport(own, "ofa-mbv3", given("classes")), tmp_path)
    assert manifest.classes == 3
    assert manifest.options["classes"] == 3
    grey = save(tmp_path / "grey.safetensors", make_space("ofa-mbv3", {**OWN, "image_channels": 1}))
    fields = {"mean": [0.4], "std": [0.2]}
    manifest, _ = exported(CheckpointExport(grey, "ofa-mbv3", given("classes"), preprocessing=fields), tmp_path)
    assert (manifest.options["image_channels"], manifest.preprocessing.mean) == (1, (0.4,))


def test_what_is_assumed_is_said(own: Path, tmp_path: Path) -> None:
    _, lines = exported(
        CheckpointExport(own, "ofa-mbv3", OWN),
        tmp_path,
    )
    text = "\n".join(lines)
    assert "expand ratios" not in text
    assert "resolutions 128, 144" in text
    assert "the dataset is called 'own'" in text
    assert "ImageNet's mean" in text
    published = save(tmp_path / "p.safetensors", make_space("ofa-mbv3", {"width": 0.25}))
    _, lines = exported(CheckpointExport(published, "ofa-mbv3", {"width": 0.25}), tmp_path)
    text = "\n".join(lines)
    assert "expand ratios 3, 4, 6 were all trained; shapes show only the largest" in text
    assert "depths 2, 3, 4 were all trained" in text
    assert "kernel sizes" not in text  # transform matrices show them
    _, lines = exported(
        CheckpointExport(
            own,
            "ofa-mbv3",
            {**OWN, "resolutions": [64]},
            dataset="insects",
            class_names=tuple(NAMES),
            preprocessing={"mean": [0.5], "std": [0.25], "fit": "squash", "interpolation": "bicubic"},
        ),
        tmp_path,
    )
    assert not [line for line in lines if line.startswith("assumed")]


def test_class_order_and_centre_crop_are_assumptions_too(own: Path, tmp_path: Path) -> None:
    """Every one of them changes accuracy in silence where it is wrong."""
    request = CheckpointExport(own, "ofa-mbv3", OWN, preprocessing={"mean": [0.5], "std": [0.25]})
    _, lines = exported(request, tmp_path)
    text = "\n".join(lines)
    assert "the 3 classes are in the order of the names of their folders" in text
    assert "a centre crop takes 1 of the resized image (--fit, --crop-fraction)" in text
    assert "bilinear interpolation" in text
    assert "images are square (--options aspect)" in text


def test_ties_of_expand_ratios_to_depths_are_an_assumption(tmp_path: Path) -> None:
    options = {"classes": 3, "width": 0.5, "expands": [2, 4], "depths": [1, 2]}
    path = save(tmp_path / "x.safetensors", make_space("mbconv", options))
    for more, expected in (({}, 1), ({"tied": False}, 0), ({"tied": True}, 0), ({"expands": [4]}, 0)):
        _, lines = exported(CheckpointExport(path, "mbconv", options | more), tmp_path)
        assert len([line for line in lines if "(--options tied)" in line]) == expected


@pytest.mark.parametrize(
    ("space", "said", "words"),
    [
        (
            "mbconv",
            {"stem": {"width": 16}, "stages": [{"width": 24, "stride": 2}, {"width": 40, "squeeze": True}]},
            (
                (
                    "stem.stride 2; stem.activation h_swish; first_block.activation relu; first_block.residual true; "
                    "stages.stride 2, 1; stages.activation h_swish, h_swish; head.activation h_swish"
                ),
                "stem, first_block, stages, head",
            ),
        ),
        (
            "mbconv",
            {
                "stem": {"width": 16, "stride": 1, "activation": "relu"},
                "first_block": {"activation": "relu"},
                "stages": [{"width": 24, "stride": 2, "activation": "relu"}],
            },
            ("first_block.residual true; head.activation h_swish", "first_block, head"),
        ),
        (
            "resnet",
            {"stages": [{"width": 64}], "depths": [0], "expands": [0.5], "widths": [1.0]},
            ("stem.stride 1; stem.pool true; stages.stride 2", "stem, stages"),
        ),
    ],
)
def test_strides_and_activations_of_own_layouts_are_said(
    tmp_path: Path, space: str, said: dict[str, Any], words: tuple[str, str]
) -> None:
    path = save(tmp_path / "layout.safetensors", make_space(space, said))
    _, lines = exported(CheckpointExport(path, space, said), tmp_path)
    wanted = "assumed: {}: shapes show none of them (--options {})".format(*words)
    assert [line for line in lines if "shapes show none" in line and "resolutions" not in line] == [wanted]


@pytest.mark.parametrize(
    ("space", "transforms", "named", "words"),
    [
        ("ofa-mbv3", False, "ofa-mbv3", r"holds no kernel transform matrices.*compofa or compofa-elastic"),
        ("ofa-mbv3", True, "compofa", "holds kernel transform matrices"),
        ("ofa-mbv3", True, "compofa-elastic", "holds kernel transform matrices"),
        ("ofa-proxyless", False, "ofa-proxyless", "holds no kernel transform matrices"),
        ("mbconv", False, "mbconv", "holds no kernel transform matrices"),
    ],
)
def test_kernel_transforms_tell_compofa_and_ofa_apart(
    tmp_path: Path, space: str, transforms: bool, named: str, words: str
) -> None:
    options = {"width": 0.25}
    path = save(tmp_path / "x.safetensors", make_space(space, options), transforms=transforms)
    request = CheckpointExport(path, named, options)
    with pytest.raises(CheckpointError, match=words):
        export_own_checkpoint(request, tmp_path / "x.supernet")
    assert not (tmp_path / "x.supernet").exists()
    trusted = CheckpointExport(path, named, options, trust_space=True)
    manifest, _ = exported(trusted, tmp_path)
    assert manifest.space == named


def test_compofas_two_spaces_are_said_to_fit_alike(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", make_space("compofa", {"width": 0.25}), transforms=False)
    _, lines = exported(CheckpointExport(path, "compofa", {"width": 0.25}), tmp_path)
    assert "compofa-elastic has the same shapes" in "\n".join(lines)
    found = inspect_file(path)
    assert (found.space, found.others[0]) == ("compofa", "compofa-elastic")


def test_digits_have_their_own_preprocessing(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", make_space("digits"))
    manifest, _ = exported(CheckpointExport(path, "digits"), tmp_path)
    assert (manifest.dataset, manifest.preprocessing.mean, manifest.preprocessing.std) == (
        "digits",
        (MEAN,),
        (DEVIATION,),
    )
    for changes in ({"preprocessing": {"mean": [0.5], "std": [0.5]}}, {"dataset": "imagenet"}):
        with pytest.raises(UsageError, match="preprocessing is fixed"):
            export_own_checkpoint(CheckpointExport(path, "digits", **changes), tmp_path / "y.supernet")  # type: ignore[arg-type]


def test_images_of_other_channels_need_a_mean(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", make_space("mbconv", {"image_channels": 2, "width": 0.5}))
    with pytest.raises(UsageError, match=r"images of 2 channels.*give --mean and --std"):
        export_own_checkpoint(CheckpointExport(path, "mbconv", {"width": 0.5}), tmp_path / "x.supernet")
    fields = {"mean": [0.5, 0.4], "std": [0.2], "fit": "letterbox"}
    manifest, _ = exported(CheckpointExport(path, "mbconv", {"width": 0.5}, preprocessing=fields), tmp_path)
    assert manifest.preprocessing.std == (0.2, 0.2)
    assert manifest.preprocessing.fit == "letterbox"


def drafted(path: Path, space: DesignSpace, **changes: Any) -> Path:
    manifest = Manifest(
        space=space.name,
        options=dict(space.options),
        classes=space.classes,
        class_names=tuple(NAMES),
        dataset="insects",
        preprocessing=Preprocessing(channels=3, mean=(0.5,) * 3, std=(0.2,) * 3, interpolation="bilinear"),
        provenance=Provenance(source="fleetnas train"),
    )
    text = json.dumps(json.loads(manifest.text()) | changes)
    return save(path, space, metadata={"fleetnas": text})


def test_weights_of_a_training_run_say_what_they_are(tmp_path: Path) -> None:
    options = {"classes": 3, "width": 0.5, "tied": True, "aspect": [3, 4], "expands": [2, 4], "depths": [1, 2]}
    path = drafted(tmp_path / "weights.safetensors", make_space("mbconv", options))
    manifest, lines = exported(CheckpointExport(path), tmp_path)
    assert manifest.options == make_space("mbconv", options).options
    assert manifest.class_names == tuple(NAMES)
    assert (manifest.dataset, manifest.preprocessing.mean) == ("insects", (0.5,) * 3)
    assert manifest.provenance.source == "fleetnas train"
    assert manifest.provenance.sha256 is not None
    assert not [line for line in lines if line.startswith("assumed")]
    changed = CheckpointExport(path, dataset="beetles", preprocessing={"fit": "squash"}, options={"resolutions": [64]})
    manifest, _ = exported(changed, tmp_path)
    assert (manifest.dataset, manifest.preprocessing.fit, manifest.options["resolutions"]) == (
        "beetles",
        "squash",
        [64],
    )
    assert manifest.preprocessing.mean == (0.5,) * 3
    with pytest.raises(UsageError, match="says itself that it is of mbconv"):
        export_own_checkpoint(CheckpointExport(path, "ofa-mbv3"), tmp_path / "y.supernet")
    found = inspect_file(path)
    assert (found.kind, found.space, found.facts["class_names"]) == ("trained", "mbconv", NAMES)
    assert found.command == f"fleetnas export {path}"


@pytest.mark.parametrize("changes", [{"surprise": 1}, {"classes": 4}, {"format_version": 99}])
def test_a_damaged_manifest_in_weights_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = drafted(tmp_path / "weights.safetensors", make_space("mbconv", {"classes": 3, "width": 0.5}), **changes)
    for action in (inspect_file, lambda file: export_own_checkpoint(CheckpointExport(file), tmp_path / "x.supernet")):
        with pytest.raises((CheckpointError, UsageError)) as caught:
            action(path)
        assert "\n" not in str(caught.value)


def test_the_command_that_inspect_prints_exports_the_file(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    code, out, _ = fleetnas(capsys, "inspect", str(own))
    assert code == 0
    command = shlex.split(out.splitlines()[-1].strip())
    assert command[:2] == ["fleetnas", "export"]
    code, _, err = fleetnas(capsys, *command[1:], "-o", str(tmp_path / "own.supernet"))
    assert code == 0, err
    assert "assumed: " in err
    code, out, _ = fleetnas(capsys, "inspect", str(tmp_path / "own.supernet"), "--json")
    assert (code, json.loads(out)["kind"], json.loads(out)["facts"]["classes"]) == (0, "bundle", 3)
    code, _, err = fleetnas(capsys, "export", str(tmp_path / "own.supernet"))
    assert (code, "is a bundle already" in err) == (2, True)


def test_class_names_and_preprocessing_on_the_command_line(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "names.txt").write_text("ant\nbee\nwasp\n")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    (tmp_path / "numbers.json").write_text(json.dumps({"bee": 1, "wasp": 2, "ant": 0}))
    fields = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "fit": "squash", "interpolation": "bicubic"}
    (tmp_path / "preprocessing.json").write_text(json.dumps(fields))
    singles = ["--mean", "0.5,0.4,0.3", "--std", "0.2", "--fit", "squash", "--interpolation", "bicubic"]
    output = tmp_path / "own.supernet"
    command = ["export", str(own), "--space", "ofa-mbv3", "--options", json.dumps(OWN), "-o", str(output)]
    for names, pixels in (
        (["--classes-file", str(tmp_path / "names.txt")], singles),
        (["--classes-file", str(tmp_path / "names.json")], ["--preprocessing", json.dumps(fields)]),
        (["--classes-file", str(tmp_path / "numbers.json")], ["--preprocessing", str(tmp_path / "preprocessing.json")]),
        (["--classes-from", str(tmp_path / "train")], singles),
    ):
        code, _, err = fleetnas(capsys, *command, *names, *pixels, "--dataset", "insects")
        assert code == 0, err
        manifest = SupernetBundle.open(output).manifest
        assert manifest.class_names == tuple(NAMES)
        assert manifest.preprocessing.model_dump() == {
            "channels": 3,
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.2, 0.2),
            "interpolation": "bicubic",
            "crop_fraction": 1.0,
            "fit": "squash",
        }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mean", "a"], "no list of numbers"),
        (["--mean", "0.5"], "give --std as well"),
        (["--mean", "0.5,0.5", "--std", "1"], "as many means"),
        (["--mean", "nan", "--std", "1"], "preprocessing is impossible"),
        (["--fit", "stretch"], "preprocessing is impossible"),
        (["--crop-fraction", "0.5", "--fit", "squash"], "crop_fraction must be 1"),
        (["--preprocessing", "{}", "--fit", "crop"], "leave --fit out"),
        (["--preprocessing", '{"colour": 1}'], "no field 'colour'"),
        (["--preprocessing", "/nowhere.json"], "give JSON, or a file of it"),
        (["--preprocessing", "[" * 10**5], "file of it"),
        (["--options", '{"a":' * 10**5], "nested too deeply"),
        (["--classes-file", "/nowhere.txt"], "cannot be read"),
        (["--classes-file", __file__, "--classes-from", "."], "leave one out"),
        (["--classes-from", "/nowhere"], "nowhere"),
        (["--options", '{"width": "1.0"}'], "width: it must be a number"),
        (["--weights", "ema"], "plain weights alone"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    output = tmp_path / "x.supernet"
    options = [] if "--options" in arguments else ["--options", json.dumps(OWN)]
    code, _, err = fleetnas(capsys, "export", str(own), "--space", "ofa-mbv3", *options, *arguments, "-o", str(output))
    assert code in (1, 2)
    assert words in " ".join(err.split())
    assert "Traceback" not in err
    assert not output.exists()


@pytest.mark.parametrize(("file", "dataset"), [("digits.safetensors", None), ("own.safetensors", "digits")])
def test_own_digits_are_not_taken_for_scikit_learns(tmp_path: Path, file: str, dataset: str | None) -> None:
    """Without a folder of images, commands would evaluate on the built-in ones."""
    options = {"classes": 10, "image_channels": 1}
    path = save(tmp_path / file, make_space("mbconv", options))
    pixels = {"mean": [0.1], "std": [0.3]}
    request = CheckpointExport(path, "mbconv", options, dataset=dataset, preprocessing=pixels)
    with pytest.raises(UsageError, match="would be taken for scikit-learn's"):
        export_own_checkpoint(request, tmp_path / "x.supernet")
    names = tuple("0123456789")
    named = CheckpointExport(path, "mbconv", options, dataset="digits", class_names=names, preprocessing=pixels)
    manifest, _ = exported(named, tmp_path)
    assert (manifest.dataset, manifest.is_digits) == ("digits", False)


def test_names_of_another_number_of_classes_are_refused(own: Path, tmp_path: Path) -> None:
    request = CheckpointExport(own, "ofa-mbv3", OWN, class_names=("ant", "bee"))
    with pytest.raises(UsageError, match="2 class names are given, and the checkpoint has 3 classes"):
        export_own_checkpoint(request, tmp_path / "x.supernet")


def test_an_accuracy_predictor_of_another_space_is_refused(own: Path, tmp_path: Path) -> None:
    accuracy = AccuracyPredictor([np.ones((1, 128), np.float32)], [np.zeros(1, np.float32)])
    request = CheckpointExport(own, "ofa-mbv3", OWN, accuracy=accuracy, accuracy_source="published.pth")
    with pytest.raises(UsageError, match=r"published.pth takes 128 features"):
        export_own_checkpoint(request, tmp_path / "x.supernet")


def test_one_subnet_is_no_supernet(tmp_path: Path) -> None:
    state = random_state_dict(make_space("mbconv", {"width": 0.5}))
    name = "blocks.3.mobile_inverted_conv.depth_conv.conv.weight"
    save_file({**state, name: np.ascontiguousarray(state[name][:, :, 1:-1, 1:-1])}, tmp_path / "x.safetensors")
    found = inspect_file(tmp_path / "x.safetensors")
    assert (found.space, found.command) == (None, None)
    assert "one subnet" in found.missing[0]
    save_file({"weight": np.ones(3, np.float32)}, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="no supernet that is known here"):
        inspect_file(tmp_path / "y.safetensors")


def test_inspecting_needs_no_torch(own: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from fleetnas.supernet_export.inspection import inspect_file\n"
        f"print(inspect_file(Path({str(own)!r})).space)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "ofa-mbv3"
