"""Random options of every family of design spaces, small enough to build."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_RATIOS = st.lists(st.sampled_from([1, 1.5, 2, 3, 4, 6]), min_size=1, max_size=3, unique=True)
_KERNELS = st.lists(st.sampled_from([3, 5, 7, 9]), min_size=1, max_size=3, unique=True)
_DEPTHS = st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)
_ACTIVATIONS = st.sampled_from(["relu", "relu6", "h_swish"])
_WIDTHS = st.integers(4, 24)


def _sides(least: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(least // 4, most // 4).map(lambda n: 4 * n), min_size=1, max_size=3, unique=True)


_ASPECTS = st.sampled_from([[1, 1], [3, 4], [16, 9], [480, 640], [2, 1], [5, 7]])
_COMMON = {"classes": st.integers(1, 12), "image_channels": st.integers(1, 4), "aspect": _ASPECTS}
_CHOICES = {"kernels": _KERNELS, "expands": _RATIOS, "depths": _DEPTHS}


@st.composite
def _tied(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 3))
    return {
        "kernels": draw(_KERNELS),
        "expands": draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=count, max_size=count, unique=True)),
        "depths": draw(st.lists(st.integers(1, 4), min_size=count, max_size=count, unique=True)),
    }


@st.composite
def _mbconv(draw: st.DrawFn) -> dict[str, Any]:
    tied = draw(st.booleans())
    options = draw(_tied()) if tied else {name: draw(values) for name, values in _CHOICES.items()}
    stage = st.fixed_dictionaries(
        {"width": _WIDTHS, "stride": st.integers(1, 3), "activation": _ACTIVATIONS, "squeeze": st.booleans()},
        optional={"blocks": st.integers(1, 4)},
    )
    stages = draw(st.lists(stage, min_size=1, max_size=3))
    if draw(st.booleans()):
        kernel = st.sampled_from(options["kernels"])
        options["stage_kernels"] = draw(st.lists(kernel, min_size=len(stages), max_size=len(stages)))
    return options | {
        "tied": tied,
        "stages": stages,
        "width": draw(st.sampled_from([0.5, 1.0, 1.3])),
        "stem": {"width": draw(_WIDTHS), "stride": draw(st.integers(1, 2)), "activation": draw(_ACTIVATIONS)},
        "first_block": {"width": draw(_WIDTHS), "activation": draw(_ACTIVATIONS), "residual": draw(st.booleans())},
        "head": {
            "expand_width": draw(st.none() | _WIDTHS),
            "features": draw(_WIDTHS),
            "activation": draw(_ACTIVATIONS),
        },
        "resolutions": draw(_sides(8, 40)),
    }


@st.composite
def _resnet(draw: st.DrawFn) -> dict[str, Any]:
    stage = st.fixed_dictionaries({"width": _WIDTHS, "stride": st.integers(1, 3), "blocks": st.integers(1, 2)})
    ratios = st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=2, unique=True)
    return {
        "stages": draw(st.lists(stage, min_size=1, max_size=3)),
        "stem": {"width": draw(_WIDTHS), "stride": draw(st.integers(1, 2)), "pool": draw(st.booleans())},
        "expands": draw(ratios),
        "widths": draw(ratios),
        "depths": draw(st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True)),
        "resolutions": draw(_sides(16, 40)),
    }


@st.composite
def space_options(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A space's name with options that it takes."""
    name = draw(
        st.sampled_from(
            ["mbconv", "mbconv", "resnet", "digits", "ofa-mbv3", "ofa-proxyless", "compofa", "ofa-resnet50"]
        )
    )
    common = {option: draw(values) for option, values in _COMMON.items()}
    if name == "mbconv":
        return name, common | draw(_mbconv())
    if name == "resnet":
        return name, common | draw(_resnet())
    common["resolutions"] = draw(_sides(32, 64))
    if name == "ofa-resnet50":
        return name, common | {"widths": [0.25], "depths": draw(st.sampled_from([[0], [0, 1]]))}
    common["width"] = draw(st.sampled_from([0.25, 0.5]))
    if name != "compofa":
        return name, common | {option: draw(values) for option, values in _CHOICES.items()}
    tied = draw(_tied())
    return name, common | tied | {"stage_kernels": draw(st.none() | st.just([tied["kernels"][0]] * 5))}
