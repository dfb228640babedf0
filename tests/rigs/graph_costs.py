"""Count what a graph costs, layer by layer: what design spaces must predict."""

from __future__ import annotations

from fleetnas.supernet_export.graph import (
    INPUT,
    Add,
    AveragePool,
    Conv,
    GlobalAveragePool,
    Graph,
    Linear,
    MaxPool,
    Scale,
)


def graph_costs(graph: Graph) -> tuple[int, int]:
    """Multiply-accumulates of one image, and the number of weights and biases after folding."""
    shapes = {INPUT: graph.input_shape}
    macs = parameters = 0
    for layer in graph.layers:
        if isinstance(layer, Add):
            assert shapes[layer.left] == shapes[layer.right]
            shapes[layer.name] = shapes[layer.left]
            continue
        channels, height, width = shapes[layer.source]
        if isinstance(layer, Conv):
            out, per_group, kernel, _ = layer.weight.shape
            assert per_group * layer.groups == channels
            height, width = ((side + 2 * layer.padding - kernel) // layer.stride + 1 for side in (height, width))
            macs += layer.weight.size * height * width
            parameters += layer.weight.size + (out if layer.bias is not None or layer.norm is not None else 0)
            shapes[layer.name] = (out, height, width)
        elif isinstance(layer, Linear):
            macs += layer.weight.size
            parameters += layer.weight.size + layer.bias.size
            shapes[layer.name] = (len(layer.weight), 1, 1)
        elif isinstance(layer, GlobalAveragePool):
            shapes[layer.name] = (channels, 1, 1)
        elif isinstance(layer, (MaxPool, AveragePool)):
            shapes[layer.name] = (channels, -(-height // layer.stride), -(-width // layer.stride))
        else:
            assert isinstance(layer, Scale)
            shapes[layer.name] = (channels, height, width)
    return macs, parameters
