"""Trainings that begin with weights that exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rigs.peer_supernets import peer_supernet  # noqa: E402

from fleetnas.fleet_protocol.errors import CheckpointError, UsageError  # noqa: E402
from fleetnas.supernet_export.bundle import SupernetBundle  # noqa: E402
from fleetnas.supernet_export.checkpoint_export import CheckpointExport, export_own_checkpoint  # noqa: E402
from fleetnas.supernet_export.manifest import Manifest, Provenance  # noqa: E402
from fleetnas.supernet_export.preprocessing import IMAGENET  # noqa: E402
from fleetnas.supernet_export.spaces.registry import make_space  # noqa: E402
from fleetnas.supernet_export.training.elastic import ElasticMBConvNet  # noqa: E402
from fleetnas.supernet_export.training.result import write_result  # noqa: E402
from fleetnas.supernet_export.training.run_settings import checked_settings  # noqa: E402
from fleetnas.supernet_export.training.run_space import training_preprocessing, training_space  # noqa: E402
from fleetnas.supernet_export.training.warm_start import load_source, load_teacher, open_source  # noqa: E402

FOLDERS = {"train": Path("train"), "val": Path("val")}


def network(space) -> ElasticMBConvNet:
    torch.manual_seed(1)
    return ElasticMBConvNet(space.network, space.kernels, space.expands, space.depths)


def random_weights(space) -> dict[str, torch.Tensor]:
    state = network(space).state_dict()
    generator = torch.Generator().manual_seed(0)
    for tensor in state.values():
        tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return state


def test_a_published_format_checkpoint_loads_all_but_the_head(tmp_path):
    peer = peer_supernet("ofa-mbv3-w1.0").state_dict()
    torch.save({"state_dict": peer}, tmp_path / "peer.pth")
    source = open_source(str(tmp_path / "peer.pth"))
    space = training_space(checked_settings(**FOLDERS, space="ofa-mbv3", resolutions=(96, 128)), source, 8)
    net = network(space)
    line = load_source(net, space, source).line
    total = len(net.state_dict())
    assert f"{total - 2} of {total} tensors loaded" in line
    assert "for 8 classes in place of 1,000" in line
    reference = {name: tensor for name, tensor in peer.items() if "num_batches" not in name}
    kept = net.state_dict()
    # Ours and the peer's names are those of published checkpoints; only the head has another shape.
    same = [name for name in kept if name in reference and torch.equal(kept[name], reference[name])]
    assert len(same) >= total - 2 - sum("inverted_conv" in name and name not in reference for name in kept)
    assert not [name for name in same if name.startswith("classifier")]


def test_grey_images_get_a_new_first_convolution():
    space = make_space("mbconv", {"classes": 3})
    grey = make_space("mbconv", {"classes": 3, "image_channels": 1})
    from fleetnas.supernet_export.training.warm_start import Source

    source = Source("old", {name: tensor.numpy() for name, tensor in random_weights(space).items()}, "mbconv")
    line = load_source(network(grey), grey, source).line
    assert "the first convolution is new, for 1 channels in place of 3" in line
    assert "classifier" not in line


@pytest.mark.parametrize("options", [{"kernels": [3, 5]}, {"width": 0.5}, {"expands": [3, 4]}, {"depths": [2, 3]}])
def test_another_network_is_refused(options):
    from fleetnas.supernet_export.training.warm_start import Source

    space, other = make_space("mbconv", {"classes": 3}), make_space("mbconv", {"classes": 3, **options})
    source = Source("old", {name: tensor.numpy() for name, tensor in random_weights(space).items()}, "mbconv")
    with pytest.raises(CheckpointError, match="give --kernels") as refusal:
        load_source(network(other), other, source)
    assert "\n" not in str(refusal.value)


def test_a_bundle_gives_back_the_network_that_it_was_made_of(tmp_path):
    space = make_space("mbconv", {"classes": 3, "resolutions": [32, 48]})
    manifest = Manifest(
        space=space.name,
        options=dict(space.options),
        classes=3,
        class_names=("a", "b", "c"),
        dataset="letters",
        preprocessing=IMAGENET,
        provenance=Provenance(source="test"),
    )
    state = random_weights(space)
    write_result(tmp_path, state, space, manifest)
    settings = checked_settings(**FOLDERS)
    for name in ("", "supernet.supernet"):
        source = open_source(str(tmp_path / name))
        found = training_space(settings, source, 3)
        assert found.options == space.options
        assert training_preprocessing(settings, source, found) == IMAGENET
        net = network(found)
        assert not load_source(net, found, source, ("a", "b", "c")).renewed
        images = torch.rand(2, 3, 48, 48)
        reference = network(space)
        reference.load_state_dict(state)
        for architecture in space.decode(space.sample(4, np.random.default_rng(0))):
            for one in (net, reference):
                one.eval()
                one.set_active(architecture)
            torch.testing.assert_close(net(images), reference(images), rtol=1e-3, atol=1e-3)


def test_what_a_file_cannot_say_is_asked_for(tmp_path):
    space = make_space("mbconv", {"classes": 3})
    torch.save(random_weights(space), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="give --space"):
        training_space(checked_settings(**FOLDERS), open_source(str(tmp_path / "weights.pth")), 3)
    request = CheckpointExport(
        tmp_path / "weights.pth", space=space.name, options=dict(space.options), dataset="own",
        preprocessing=IMAGENET.model_dump(exclude={"channels"}),
    )  # fmt: skip
    export_own_checkpoint(request, tmp_path / "old.supernet")
    assert SupernetBundle.open(tmp_path / "old.supernet").manifest.format_version == 1
    with pytest.raises(UsageError, match="leave --space out"):
        training_space(checked_settings(**FOLDERS, space="ofa-mbv3"), open_source(str(tmp_path / "old.supernet")), 3)


def test_compound_training_ties_the_space():
    settings = checked_settings(**FOLDERS, schedule="compound")
    assert training_space(settings, None, 3).tied
    settings = checked_settings(**FOLDERS, schedule="compound", space="ofa-mbv3")
    assert training_space(settings, None, 3).name == "compofa-elastic"


def written(folder: Path, **changes) -> tuple[Path, Manifest]:
    """Write the bundle of a training on classes a, b, c; return it and its manifest."""
    folder.mkdir()
    space = make_space("mbconv", {"classes": 3, "resolutions": [32], "kernels": [3], **changes.pop("options", {})})
    manifest = Manifest(
        space=space.name,
        options=dict(space.options),
        classes=3,
        class_names=changes.pop("class_names", ("a", "b", "c")),
        dataset="letters",
        preprocessing=IMAGENET.model_copy(update=changes),
        provenance=Provenance(source="test"),
    )
    write_result(folder, random_weights(space), space, manifest)
    return folder / "supernet.supernet", manifest


@pytest.mark.parametrize("names", [("c", "b", "a"), ("a", "b", "d")])
def test_a_classifier_of_other_classes_is_not_kept(tmp_path, names):
    """Each row would begin as another class, or as one that is not there."""
    bundle, manifest = written(tmp_path / "before")
    space = make_space(manifest.space, manifest.options)
    net = network(space)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    loaded = load_source(net, space, open_source(str(bundle)), names)
    assert "the classifier is new, since its classes are others, or in another order" in loaded.line
    same = [name for name, tensor in net.state_dict().items() if torch.equal(tensor, before[name])]
    assert sorted(loaded.renewed) == sorted(same) == ["classifier.linear.bias", "classifier.linear.weight"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ("c", "b", "a")}, "classes of these images in the same order"),
        ({"class_names": ("a", "b", "d")}, "classes of these images in the same order"),
        ({"mean": (0.5, 0.5, 0.5)}, "normalised with mean"),
        ({"options": {"stem": {"stride": 1}}}, "other strides, activations or the like"),
        ({"options": {"batch_norm_epsilon": 1e-3}}, "other strides, activations or the like"),
    ],
)
def test_a_teacher_of_something_else_is_refused(tmp_path, changes, words):
    _, manifest = written(tmp_path / "ours")
    bundle, _ = written(tmp_path / "theirs", **changes)
    space = make_space(manifest.space, manifest.options)
    with pytest.raises(UsageError, match=words) as refusal:
        load_teacher(network(space), space, manifest, str(bundle))
    assert "\n" not in str(refusal.value)


def test_a_teacher_may_have_any_file_name(tmp_path):
    bundle, manifest = written(tmp_path / "a new network")
    space = make_space(manifest.space, manifest.options)
    assert "tensors loaded" in load_teacher(network(space), space, manifest, str(bundle))
