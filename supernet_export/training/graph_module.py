"""A subnet as a torch module, made from its graph: whatever family it is of, it can be trained on."""

# Linting must not need torch, so its classes and decorators are untyped here.
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fleetnas.supernet_export.graph import (
    INPUT,
    Activation,
    Add,
    Array,
    AveragePool,
    Conv,
    GlobalAveragePool,
    Graph,
    Layer,
    Linear,
    MaxPool,
    Scale,
)
from fleetnas.supernet_export.graph_tensors import graph_tensors, with_tensors

_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu,
    "relu6": functional.relu6,
    "h_swish": functional.hardswish,
    "h_sigmoid": functional.hardsigmoid,
}


class GraphModule(nn.Module):
    """Computes a graph, with batch norms of their own behind its convolutions.

    Input: images, float32 of shape (n, channels, height, width). Output: logits, shape (n, classes). The parameters and
    buffers are copies of the graph's weights; `graph()` returns them.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self.layers = nn.ModuleDict(
            {_key(layer): made for layer in graph.layers if (made := _module(layer)) is not None}
        )
        #: Tensors that no later layer reads, per layer: they are dropped there.
        self._finished = _finished(graph)
        self._load(graph_tensors(graph))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (n, classes)."""
        values = {INPUT: x}
        for layer, finished in zip(self._graph.layers, self._finished, strict=True):
            x = self._run(layer, values)
            values[layer.name] = x
            for name in finished:
                del values[name]
        return x

    def graph(self) -> Graph:
        """Return the graph with the present weights and running statistics, as float32 copies."""
        arrays = {name: _array(tensor) for name, tensor in self._tensors().items()}
        return with_tensors(self._graph, arrays.__getitem__)

    def _run(self, layer: Layer, values: dict[str, Tensor]) -> Tensor:
        match layer:
            case Conv():
                return _ACTIVATIONS[layer.activation](self.layers[_key(layer)](values[layer.source]))
            case Linear():
                found: Tensor = self.layers[_key(layer)](values[layer.source].flatten(1))
                return found
            case Add():
                return _ACTIVATIONS[layer.activation](values[layer.left] + values[layer.right])
            case Scale():
                return values[layer.source] * values[layer.gate]
            case GlobalAveragePool():
                return values[layer.source].mean((2, 3), keepdim=True)
            case MaxPool():
                return functional.max_pool2d(values[layer.source], layer.kernel, layer.stride, layer.padding)
            case AveragePool():
                return functional.avg_pool2d(values[layer.source], layer.kernel, layer.stride, ceil_mode=layer.ceil)

    def _tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by their names in `graph_tensors`."""
        found: dict[str, Tensor] = {}
        for layer in self._graph.layers:
            if isinstance(layer, Conv | Linear):
                module = self.layers[_key(layer)]
                parts = {"": module} if isinstance(layer, Linear) else dict(module.named_children())
                for part, inner in parts.items():
                    prefix = f"{layer.name}.bn" if part == "bn" else layer.name
                    found |= {f"{prefix}.{name}": tensor for name, tensor in inner.state_dict(keep_vars=True).items()}
        return {name: tensor for name, tensor in found.items() if not name.endswith("num_batches_tracked")}

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Array]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(np.array(weights[name], np.float32)))


def _module(layer: Layer) -> nn.Module | None:
    """Return the layer's parameters as a module; None where it has none."""
    if isinstance(layer, Linear):
        return nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
    if not isinstance(layer, Conv):
        return None
    out, inside, kernel, _ = layer.weight.shape
    conv = nn.Conv2d(
        inside * layer.groups,
        out,
        kernel,
        layer.stride,
        layer.padding,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    parts = {"conv": conv}
    if layer.norm is not None:
        parts["bn"] = nn.BatchNorm2d(out, eps=layer.norm.epsilon)
    made = nn.Sequential()
    for name, part in parts.items():
        made.add_module(name, part)
    return made


def _key(layer: Layer) -> str:
    """Return the layer's name as torch allows it: without dots."""
    return layer.name.replace(".", "/")


def _sources(layer: Layer) -> tuple[str, ...]:
    if isinstance(layer, Add):
        return layer.left, layer.right
    if isinstance(layer, Scale):
        return layer.source, layer.gate
    return (layer.source,)


def _finished(graph: Graph) -> list[list[str]]:
    """Return, per layer, the tensors that it is the last to read."""
    last: dict[str, int] = {}
    for place, layer in enumerate(graph.layers):
        last |= dict.fromkeys(_sources(layer), place)
    return [[name for name, place in last.items() if place == wanted] for wanted in range(len(graph.layers))]


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.detach().to("cpu", torch.float32, memory_format=torch.contiguous_format, copy=True).numpy()
    return found
