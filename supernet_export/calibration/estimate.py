"""Re-estimate batch-norm statistics of a subnet on images, without torch.

A subnet's activations are not the supernet's, so its batch norms need statistics of their own. The graph is emitted
with batch norms that normalise by their batch's own mean and (biased) variance and put both out; onnxruntime runs
it. Source of the semantics: `set_running_statistics` of the once-for-all project.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.graph import INPUT, Array, Graph, Statistics
from fleetnas.supernet_export.interpreters.onnxruntime import open_session


def estimate_statistics(graph: Graph, batches: Iterable[Array], *, threads: int = 1) -> Statistics:
    """Return mean and variance before each batch norm, averaged over `batches` weighted by their sizes.

    A batch has shape (n, channels, height, width), preprocessed; batches may differ in n. `UsageError` where there
    is none. Statistics are float32, by the name of the convolution in front of the batch norm; a subnet built with
    them is calibrated.
    """
    from fleetnas.supernet_export.emitters.statistics import (
        emit_statistics,  # a device that only loads a blob has no onnx
    )

    convolutions = [conv for conv in graph.convolutions() if conv.norm is not None]
    if not convolutions:
        return {}
    model, outputs = emit_statistics(graph)
    session = open_session(model, threads=threads)
    count = 0
    totals: list[NDArray[np.float64]] = []
    for batch in batches:
        found = session.run(outputs, {INPUT: batch})
        if not totals:
            totals = [np.zeros(values.size) for values in found]
        for total, values in zip(totals, found, strict=True):
            total += len(batch) * values.reshape(-1).astype(np.float64)
        count += len(batch)
    if count == 0:
        raise UsageError("batch-norm statistics cannot be estimated from no images; give at least one")
    averages = iter([(total / count).astype(np.float32) for total in totals])
    return {conv.name: (next(averages), next(averages)) for conv in convolutions}
