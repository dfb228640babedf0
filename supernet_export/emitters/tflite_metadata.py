"""Write TFLite Metadata: a flatbuffer inside the model, and its files in a zip archive behind the model.

The schema is `metadata_schema.fbs` of TensorFlow Lite Support, for version 1.0.0 of its parser; `tflite-support`, which
has bindings for it, installs on few processors. The archive is written by hand, uncompressed and without dates, so that
its bytes depend on no version of Python or zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fleetnas.supernet_export.graph import INPUT, OUTPUT
from fleetnas.supernet_export.model_metadata import ModelMetadata, to_json

#: Name of the model's metadata entry, and the identifier of the flatbuffer in it.
METADATA_NAME, _IDENTIFIER = "TFLITE_METADATA", b"M001"
#: Files in the archive: one class name a line in the order of the logits; all metadata as JSON.
LABELS_FILE, DESCRIPTION_FILE = "labels.txt", "fleetnas.json"

_PARSER_VERSION = "1.0.0"
# The numbers of enum values and union members in the schema: AssociatedFileType, ColorSpaceType, ContentProperties,
# ProcessUnitOptions.
_DESCRIPTIONS, _TENSOR_AXIS_LABELS = 1, 2
_COLOUR_SPACES = {1: 2, 3: 1}  # channels: GRAYSCALE, RGB
_IMAGE_PROPERTIES, _NORMALIZATION_OPTIONS = 2, 1
#: Local header, central directory entry and end of central directory (PKWARE's APPNOTE 6.3.3, 4.3.7 to 4.3.16).
_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
_ZIP_VERSION, _DOS_EPOCH = 20, (0, 0x21)  # 1980-01-01 00:00


def metadata_table(metadata: ModelMetadata, input_shape: tuple[int, int, int]) -> bytes:
    """Return the metadata flatbuffer of a model whose input is an image of `input_shape` (channels, height, width)."""
    return _Writer().write(metadata, input_shape)


def appended_files(metadata: ModelMetadata, offset: int) -> bytes:
    """Return the zip archive that follows the model's `offset` bytes."""
    files = [(DESCRIPTION_FILE, to_json(metadata.fields()).encode())]
    if metadata.class_names is not None:
        files.insert(0, (LABELS_FILE, "".join(f"{name}\n" for name in metadata.class_names).encode()))
    body, directory = bytearray(), bytearray()
    for name, content in files:
        start = offset + len(body)
        size = len(content)
        common = (0, 0, *_DOS_EPOCH, zlib.crc32(content), size, size, len(name), 0)
        body += _LOCAL.pack(b"PK\3\4", _ZIP_VERSION, *common) + name.encode() + content
        directory += _CENTRAL.pack(b"PK\1\2", _ZIP_VERSION, _ZIP_VERSION, *common, 0, 0, 0, 0, start) + name.encode()
    end = _END.pack(b"PK\5\6", 0, 0, len(files), len(files), len(directory), offset + len(body), 0)
    return bytes(body + directory + end)


class _Writer:
    """Writes the tables of one model's metadata, the innermost first."""

    def __init__(self) -> None:
        import flatbuffers

        self._builder: Any = flatbuffers.Builder(1024)

    def write(self, metadata: ModelMetadata, input_shape: tuple[int, int, int]) -> bytes:
        labels = [] if metadata.class_names is None else [self.file(LABELS_FILE, "class names", _TENSOR_AXIS_LABELS)]
        image = self.image(metadata, input_shape)
        logits = self.table(
            7,
            {
                0: self.text(OUTPUT),
                1: self.text("one logit per class; softmax makes them probabilities"),
                6: self.tables(labels),
            },
        )
        subgraph = self.table(4, {2: self.tables([image]), 3: self.tables([logits])})
        description = self.file(DESCRIPTION_FILE, "classes, preprocessing and provenance", _DESCRIPTIONS)
        model = self.table(
            8,
            {
                0: self.text(f"subnet for {metadata.dataset}"),
                1: self.text(f"weights from {metadata.provenance['source']}"),
                3: self.tables([subgraph]),
                4: self.text("fleetnas"),
                6: self.tables([description]),
                7: self.text(_PARSER_VERSION),
            },
        )
        self._builder.Finish(model, _IDENTIFIER)
        return bytes(self._builder.Output())

    def image(self, metadata: ModelMetadata, input_shape: tuple[int, int, int]) -> int:
        """Write the input's metadata: values of the pixels are 0 to 255 before normalisation."""
        channels, height, width = input_shape
        size = self.table(2, {}, numbers={0: width, 1: height})
        properties = self.table(2, {1: size}, bytes_={0: _COLOUR_SPACES.get(channels, 0)})
        content = self.table(3, {1: properties}, bytes_={0: _IMAGE_PROPERTIES})
        preprocessing = metadata.preprocessing
        mean, deviation = (self.floats([255 * value for value in preprocessing[name]]) for name in ("mean", "std"))
        options = self.table(2, {0: mean, 1: deviation})
        normalisation = self.table(2, {1: options}, bytes_={0: _NORMALIZATION_OPTIONS})
        fitted = f"image, fitted by {preprocessing['fit']}, {preprocessing['interpolation']} interpolation"
        return self.table(7, {0: self.text(INPUT), 1: self.text(fitted), 3: content, 4: self.tables([normalisation])})

    def file(self, name: str, description: str, kind: int) -> int:
        return self.table(5, {0: self.text(name), 1: self.text(description)}, bytes_={2: kind})

    def table(
        self,
        slots: int,
        offsets: dict[int, int],
        *,
        numbers: dict[int, int] | None = None,
        bytes_: dict[int, int] | None = None,
    ) -> int:
        """Write a table of `slots` fields, by their positions in the schema."""
        self._builder.StartObject(slots)
        for slot, offset in offsets.items():
            self._builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, number in (numbers or {}).items():
            self._builder.PrependUint32Slot(slot, number, 0)
        for slot, number in (bytes_ or {}).items():
            self._builder.PrependUint8Slot(slot, number, 0)
        return int(self._builder.EndObject())

    def text(self, value: str) -> int:
        return int(self._builder.CreateString(value))

    def floats(self, values: Sequence[float]) -> int:
        return int(self._builder.CreateNumpyVector(np.array(values, "<f4")))

    def tables(self, offsets: Sequence[int]) -> int:
        """Write a vector of tables; 0, which stands for no field, where there are none."""
        if not offsets:
            return 0
        self._builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        return int(self._builder.EndVector())
