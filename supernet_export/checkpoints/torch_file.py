"""Read a PyTorch state dict without torch, and without executing code in its pickle.

Both layouts of `torch.save` are read: the zip archive and the older stream of pickles. The unpickler knows only
what a state dict is made of (ordered dictionaries and tensors over plain storages, rebuilt here in numpy) and the
stand-ins of `plain_data`; everything else that a pickle names is refused before it is called.
"""

from __future__ import annotations

import collections
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import CheckpointError
from fleetnas.supernet_export.checkpoints.plain_data import PLAIN_DATA, Forgotten

REMEDY = "Where the network's code is at hand, save its weights alone: torch.save(model.state_dict(), FILE)"
#: What the older layout starts with (`torch.serialization.MAGIC_NUMBER`).
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "BFloat16Storage": "<u2",  # the upper halves of float32
}


class _Storage(NamedTuple):
    key: str
    kind: str
    length: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self.kind])


class StoredTensor(NamedTuple):
    """A tensor whose values are not read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path | str) -> tuple[Any, Callable[[StoredTensor], NDArray[Any]]]:
    """Return the saved object, with a `StoredTensor` for each tensor, and the function that reads one.

    `CheckpointError` where the file is not such a file, is truncated, or names anything to call; the function raises
    it for a tensor that cannot be had.
    """
    path = Path(path)
    with _errors_of(path), path.open("rb") as file:
        content, read_storage = _open_zip(file) if zipfile.is_zipfile(file) else _open_stream(file)

    def read(tensor: StoredTensor) -> NDArray[Any]:
        with _errors_of(path):
            return _array(tensor, read_storage)

    return content, read


def from_bfloat16(upper_halves: NDArray[Any]) -> NDArray[Any]:
    """Return the float32 numbers of which the upper 16 bits are given, shape (n,)."""
    return (upper_halves.astype("<u4") << 16).view("<f4")


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a usable PyTorch state dict: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; check the path") from None
    except Exception as error:  # noqa: BLE001 - a malformed pickle can raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{path} is not a usable PyTorch state dict ({reason}); fetch it again") from None


def _open_zip(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    file.seek(0)
    # The archive is read whole: storages are wanted after the file is closed.
    archive = zipfile.ZipFile(BytesIO(file.read()))
    (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise CheckpointError("it was written on a big-endian machine")
    content = _TensorUnpickler(BytesIO(archive.read(pickled))).load()
    return content, lambda storage: archive.read(f"{folder}data/{storage.key}")


def _open_stream(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    file.seek(0)
    if _TensorUnpickler(file).load() != _LEGACY_MAGIC:
        raise CheckpointError("it was not written by torch.save")
    _protocol, system = _TensorUnpickler(file).load(), _TensorUnpickler(file).load()
    if not system["little_endian"]:
        raise CheckpointError("it was written on a big-endian machine")
    unpickler = _TensorUnpickler(file)
    content = unpickler.load()
    storages: dict[str, bytes] = {}
    for key in _TensorUnpickler(file).load():
        storage = unpickler.storages[key]
        length = int.from_bytes(file.read(8), "little")
        if length != storage.length:
            raise CheckpointError(f"storage {key} should hold {storage.length} numbers and holds {length}")
        storages[key] = file.read(length * storage.dtype.itemsize)
    return content, lambda storage: storages[storage.key]


def _array(tensor: StoredTensor, read_storage: Callable[[_Storage], bytes]) -> NDArray[Any]:
    flat: NDArray[Any] = np.frombuffer(read_storage(tensor.storage), tensor.storage.dtype)
    if tensor.storage.kind == "BFloat16Storage":
        flat = from_bfloat16(flat)
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, flat.dtype)
    reach = [(side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True)]
    inside = tensor.offset >= 0 and min(reach, default=0) >= 0 and tensor.offset + sum(reach) < len(flat)
    if not inside or math.prod(tensor.shape) > len(flat):
        raise CheckpointError(f"a tensor of shape {tensor.shape} reaches beyond its storage of {len(flat)} numbers")
    strides = tuple(stride * flat.itemsize for stride in tensor.strides)
    return np.array(np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides))


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        raise CheckpointError("it holds a tensor without a storage")
    return StoredTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(tensor: StoredTensor, *_: Any) -> StoredTensor:
    return tensor


def _rebuild_with_attributes(rebuild: Any, _kind: object, arguments: tuple[Any, ...], *_: Any) -> Any:
    if rebuild not in (_rebuild_tensor, _rebuild_parameter):
        raise CheckpointError("it holds a tensor of an unknown kind")
    return rebuild(*arguments)


def _encode(text: str, encoding: str = "") -> bytes:
    """Return the bytes in a text, as pickles for Python 2 store them."""
    if encoding != "latin1":
        raise CheckpointError(f"it holds bytes in an unknown encoding, {encoding[:50]!r}")
    return text.encode("latin1")


#: What `torch.float32` and the like are called.
_TORCH_DTYPES = (
    *(f"float{bits}" for bits in (16, 32, 64)),
    *(f"int{bits}" for bits in (8, 16, 32, 64)),
    *("bfloat16", "uint8", "bool"),
)
_ALLOWED: dict[tuple[str, str], Any] = {
    **PLAIN_DATA,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "Counter"): PLAIN_DATA["collections", "defaultdict"],
    ("builtins", "set"): set,
    ("builtins", "complex"): complex,
    ("_codecs", "encode"): _encode,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_with_attributes,
    ("torch", "Tensor"): Forgotten,
    ("torch.nn.parameter", "Parameter"): Forgotten,
    ("torch", "Size"): tuple,
    ("torch", "device"): Forgotten,
    **{("torch", name): Forgotten for name in _TORCH_DTYPES},
    **{("torch", name): name for name in _DTYPES},
}


class _TensorUnpickler(pickle.Unpickler):
    """Finds the names in `_ALLOWED`, none of which has a side effect, and refuses all others."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = ("builtins" if module == "__builtin__" else module, name)
        if key not in _ALLOWED:
            raise CheckpointError(
                f"it asks to call {module}.{name}"[:200] + f", which a state dict never does; nothing was run. {REMEDY}"
            )
        return _ALLOWED[key]

    def persistent_load(self, identity: Any) -> _Storage:
        kind, name, key, _location, length = identity[:5]
        if kind != "storage" or name not in _DTYPES:
            raise CheckpointError(f"it holds a storage of an unknown kind, {str(name)[:50]!r}")
        return self.storages.setdefault(key, _Storage(str(key), name, int(length)))
