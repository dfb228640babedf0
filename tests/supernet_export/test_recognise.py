"""Recognising checkpoints: the space that is found has the shapes of the one that was saved, whatever its options."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from rigs.space_options import space_options

from fleetnas.fleet_protocol.errors import CheckpointError
from fleetnas.supernet_export.checkpoint_export import check_kernel_transforms
from fleetnas.supernet_export.checkpoints.facts import read_facts
from fleetnas.supernet_export.checkpoints.recognise import Recognition, recognise
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.registry import make_space

#: Families whose checkpoints have no kernel transforms.
WITHOUT = ("compofa", "compofa-elastic")


def shapes_of(space: DesignSpace, *, transforms: bool = True) -> dict[str, tuple[int, ...]]:
    slicer = slicer_for(space)
    return slicer.checkpoint_shapes() | (slicer.optional_shapes() if transforms else {})


def found(space: DesignSpace) -> Recognition | None:
    return recognise(read_facts(shapes_of(space, transforms=space.name not in WITHOUT)))


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(chosen=space_options())
def test_the_space_that_is_found_has_the_shapes_of_the_checkpoint(chosen: tuple[str, dict[str, Any]]) -> None:
    space = make_space(*chosen)
    recognition = found(space)
    if recognition is None or any("ties them" in sentence for sentence in recognition.missing):
        return
    again = make_space(recognition.space, recognition.options)
    shapes = shapes_of(space, transforms=space.name not in WITHOUT)
    assert shapes_of(again, transforms=False) == shapes_of(space, transforms=False)
    check_kernel_transforms(again, shapes)  # an export takes it


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(chosen=space_options().filter(lambda chosen: chosen[0].startswith(("ofa-mbv3", "ofa-proxyless", "digits"))))
def test_published_layouts_are_found_by_name(chosen: tuple[str, dict[str, Any]]) -> None:
    space = make_space(*chosen)
    recognition = found(space)
    assert recognition is not None
    if recognition.space == "compofa":  # one kernel size needs no transforms
        assert chosen[1]["kernels"] == [7]
        assert "ofa-mbv3 with kernels [7]" in recognition.others
        return
    assert recognition.space in (space.name, "mbconv")
    if space.name != "digits":
        assert recognition.space == space.name
        assert recognition.options["width"] == chosen[1]["width"]
    if space.name == recognition.space:
        assert sorted(recognition.options.get("kernels", [3, 5, 7])) == sorted(chosen[1]["kernels"])


def test_published_supernets_are_found_with_default_options() -> None:
    for name in ("ofa-mbv3", "ofa-proxyless", "ofa-resnet50", "digits"):
        recognition = found(make_space(name))
        assert recognition is not None
        assert recognition.space == name
        assert make_space(name, recognition.options).options == make_space(name).options
    wide = found(make_space("ofa-mbv3", {"width": 1.2}))
    assert wide is not None
    assert wide.options["width"] == 1.2


@pytest.mark.parametrize(
    "shapes", [{}, {"fc.weight": (3, 4)}, {"blocks.1.mobile_inverted_conv.depth_conv.conv.weight": (3,)}]
)
def test_shapes_of_other_networks_are_no_facts(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_facts(shapes)
    assert "\n" not in str(caught.value)
