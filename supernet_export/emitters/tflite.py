"""Write the intermediate graph as a TFLite file: batch norm folded, static shapes, the same bytes everywhere."""

from __future__ import annotations

from functools import partial

from fleetnas.supernet_export.emitters.tflite_int8 import Int8Lowering
from fleetnas.supernet_export.emitters.tflite_lowering import Lowering
from fleetnas.supernet_export.emitters.tflite_metadata import METADATA_NAME, appended_files, metadata_table
from fleetnas.supernet_export.graph import Graph
from fleetnas.supernet_export.quantisation import Ranges


def emit_tflite(graph: Graph, *, batch: int = 1, ranges: Ranges | None = None) -> bytes:
    """Return a TFLite model of the subnet: `input` (batch, height, width, channels) to `logits` (batch, classes).

    Both are float32. With the `ranges` of its activations the model is int8 in between. The graph's metadata, if it has
    some, are written as TFLite Metadata.
    """
    model = (Lowering(graph, batch) if ranges is None else Int8Lowering(graph, batch, ranges)).model
    if graph.metadata is None:
        return model.serialise()
    model.set_metadata(METADATA_NAME, metadata_table(graph.metadata, graph.input_shape))
    return model.serialise(partial(appended_files, graph.metadata))
