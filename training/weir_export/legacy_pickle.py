"""Reads tensors from a file that torch.save wrote before version 1.6, without torch.

The layout is four pickles (magic number, protocol version, system information, the object), a pickled
list of storage keys, and then, in that order, each storage as an int64 element count and its raw
little-endian elements. A tensor is a strided view of a storage. Only the names in ALLOWED may occur in
the pickles, so that a hostile file cannot run code.
"""

import collections
import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


class WeightsError(ValueError):
    """The weights file is malformed; the message states where."""


@dataclass(frozen=True)
class StorageRef:
    """A pickle's reference to a storage whose elements are later in the file."""

    dtype: np.dtype
    key: str
    count: int


@dataclass(frozen=True)
class TensorView:
    """A strided view of a storage; offset and stride count elements."""

    storage: StorageRef
    offset: int
    shape: tuple
    stride: tuple

    def resolve(self, storages: dict) -> np.ndarray:
        """The tensor as a contiguous copy."""
        flat = storages[self.storage.key]
        if len(self.shape) != len(self.stride):
            raise WeightsError(f"tensor has {len(self.shape)} dimensions but {len(self.stride)} strides")
        if self.offset < 0 or min(self.shape, default=0) < 0 or min(self.stride, default=0) < 0:
            raise WeightsError("tensor has a negative offset, size or stride")
        if 0 in self.shape:
            return np.empty(self.shape, flat.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if last >= flat.size:
            raise WeightsError(f"tensor reaches element {last} of a storage of {flat.size}")
        strides = [s * flat.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)
        return np.ascontiguousarray(view).reshape(self.shape)


@dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype


def _rebuild_tensor(storage, offset, shape, stride, *_unused):
    return TensorView(storage, offset, tuple(shape), tuple(stride))


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): _StorageType(np.dtype("<f4")),
    ("torch", "HalfStorage"): _StorageType(np.dtype("<f2")),
    ("torch", "DoubleStorage"): _StorageType(np.dtype("<f8")),
    ("torch", "LongStorage"): _StorageType(np.dtype("<i8")),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise WeightsError(f"the pickle names {module}.{name}, which is not allowed") from None

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage":
            raise WeightsError(f"unknown persistent id {pid!r}")
        _, kind, key, _device, count, view = pid
        if not isinstance(kind, _StorageType) or view is not None:
            raise WeightsError(f"storage {key!r} is of a kind that is not supported")
        return StorageRef(kind.dtype, key, count)


def _collect_storages(views) -> dict:
    return {view.storage.key: view.storage for view in views}


def _read_storage(file: io.BytesIO, ref: StorageRef) -> np.ndarray:
    head = file.read(8)
    count = int.from_bytes(head, "little", signed=True)
    if len(head) != 8 or count != ref.count:
        raise WeightsError(f"storage {ref.key} should hold {ref.count} elements, the file says {count}")
    raw = file.read(count * ref.dtype.itemsize)
    if len(raw) != count * ref.dtype.itemsize:
        raise WeightsError(f"the file ends inside storage {ref.key}")
    return np.frombuffer(raw, ref.dtype)


def loads(data: bytes) -> dict:
    """The state dict in `data`: a name -> numpy array, each contiguous. Raises WeightsError."""
    file = io.BytesIO(data)
    try:
        magic, protocol, system, state = (_Unpickler(file).load() for _ in range(4))
        keys = _Unpickler(file).load()
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise WeightsError(f"not a legacy torch file: {error}") from error
    if magic != MAGIC or protocol != PROTOCOL:
        raise WeightsError(f"not a legacy torch file: magic {magic!r}, protocol {protocol!r}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsError("only little-endian files are supported")
    if not isinstance(state, dict) or not all(isinstance(v, TensorView) for v in state.values()):
        raise WeightsError("the file holds something other than a dict of tensors")
    refs = _collect_storages(state.values())
    if set(keys) != set(refs):
        raise WeightsError("the list of storages does not match the tensors")
    storages = {key: _read_storage(file, refs[key]) for key in keys}
    return {name: view.resolve(storages) for name, view in state.items()}


def load(path: Path) -> dict:
    """`loads` of the file at `path`."""
    return loads(Path(path).read_bytes())
