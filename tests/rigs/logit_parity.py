"""Whether two implementations of one subnet agree, on images on which a difference between them shows.

Random networks answer nearly the same to every image, and noise is the same image again and again once it is pooled:
there, a network without its stem passes for a network with it. So the subnets are calibrated, the images differ as
photographs do, and what counts is also how the logits differ *between* images.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fleetnas.supernet_export.graph import Add, Array, Conv, Graph, Layer, Linear

#: Two float32 implementations of one calibrated subnet differ by a few 1e-6 of the logits' range.
TOLERANCE = 1e-4
#: Deviation of the logits between images over that between classes: less, and images hardly matter.
LEAST_CONTRAST = 0.1


def photo_like(count: int, shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    """Images (count, channels, height, width) as preprocessed photographs: smooth, each of another light and contrast.

    Their amplitude falls with the spatial frequency, as that of natural images does. Source: Field, "Relations
    between the statistics of natural images and the response properties of cortical cells", 1987.
    """
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    real, imaginary = rng.standard_normal((2, count, channels, height, width // 2 + 1))
    field = np.fft.irfft2((real + 1j * imaginary) / frequency, s=(height, width))
    field /= field.std(axis=(1, 2, 3), keepdims=True)
    contrast = rng.uniform(0.4, 1.2, (count, 1, 1, 1))
    light = 0.7 * rng.standard_normal((count, channels, 1, 1))
    return (contrast * field + light).astype(np.float32)


def disagreement(found: Array, expected: Array) -> float:
    """How far logits (n images, classes) are apart; 0 is equal, 1 is nothing in common.

    The larger of two: the largest difference over the range of the logits; and the largest difference of what each
    image adds to the mean over the images, over the largest of that.
    """
    assert found.shape == expected.shape
    level = np.abs(found - expected).max() / np.ptp(expected)
    own = expected - expected.mean(axis=0)
    between = np.abs(found - found.mean(axis=0) - own).max() / np.abs(own).max()
    return float(max(level, between))


def contrast(logits: Array) -> float:
    """Deviation of logits (n images, classes) between the images over that between the classes."""
    return float((logits - logits.mean(axis=0)).std() / logits.mean(axis=0).std())


def assert_equal_logits(found: Array, expected: Array) -> None:
    """Equal logits (n images, classes), on images that tell."""
    assert contrast(expected) >= LEAST_CONTRAST, f"images change the logits by {contrast(expected):.3g} only: calibrate"
    assert disagreement(found, expected) <= TOLERANCE


# -- faults --------------------------------------------------------------------------------------------------------

#: Kinds of layers by the ends of their names, in both families of networks.
KINDS = {
    "stem": ("stem", "stem.conv1"),
    "expansion": (".expand", ".conv1"),
    "depthwise kernel": (".depthwise", ".conv2"),
    "projection": (".project", ".conv3"),
    "shortcut": (".add",),
    "downsampling": (".downsample",),
    "squeeze": (".se_reduce",),
    "excite": (".se_expand",),
    "final expansion": ("final_expand",),
    "feature mix": ("feature_mix",),
    "classifier": ("classifier",),
}


def layers_of(graph: Graph, kind: str) -> list[str]:
    """Names of the layers of that kind, in order."""
    stem = kind == "stem"
    return [
        layer.name
        for layer in graph.layers
        if layer.name.endswith(KINDS[kind]) and layer.name.startswith("stem") == stem
    ]


def perturbed(graph: Graph, name: str, rng: np.random.Generator, share: float = 0.03) -> Graph:
    """The graph with the weights of one layer off by `share`, at random; of a sum, what it adds to its left side."""

    def off(weight: Array) -> Array:
        return (weight * (1 + share * rng.standard_normal(weight.shape))).astype(np.float32)

    layers: list[Layer] = []
    for layer in graph.layers:
        if layer.name != name:
            layers.append(layer)
        elif isinstance(layer, (Conv, Linear)):
            layers.append(replace(layer, weight=off(layer.weight)))
        else:
            assert isinstance(layer, Add)
            channels = _channels(graph, layer.left)
            weight = off(np.ones((channels, 1, 1, 1), np.float32))
            layers.append(Conv(f"{name}.off", layer.right, weight, None, None, 1, 0, channels, "none"))
            layers.append(replace(layer, right=f"{name}.off"))
    return replace(graph, layers=tuple(layers))


def _channels(graph: Graph, name: str) -> int:
    (conv,) = [layer for layer in graph.convolutions() if layer.name == name]
    return len(conv.weight)
