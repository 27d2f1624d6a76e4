"""Reading torch's legacy files: strides and offsets are honoured, hostile or damaged files are refused."""

import collections
import io
import pickle
import sys
import types

import numpy as np
import pytest

from weir_export import legacy_pickle
from weir_export.legacy_pickle import WeightsError


class Storage:
    def __init__(self, key, values):
        self.key, self.values = key, np.asarray(values)


class Tensor:
    def __init__(self, storage, offset, shape, stride):
        self.arguments = (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


def _named(name, module):
    function = types.FunctionType((lambda *a: None).__code__, {}, name)
    function.__module__, function.__qualname__ = module, name
    return function


@pytest.fixture
def torch_names(monkeypatch):
    """Modules with torch's names, so that pickle writes references to them."""
    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage, torch.LongStorage = type("FloatStorage", (), {}), type("LongStorage", (), {})
    for kind in (torch.FloatStorage, torch.LongStorage):
        kind.__module__, kind.__qualname__ = "torch", kind.__name__
    inner._rebuild_tensor_v2 = _named("_rebuild_tensor_v2", "torch._utils")
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", inner)
    return torch


def write(torch, state, storages, magic=legacy_pickle.MAGIC) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, Storage):
                kind = torch.LongStorage if thing.values.dtype == np.int64 else torch.FloatStorage
                return ("storage", kind, thing.key, "cpu", thing.values.size, None)
            return None

    out = io.BytesIO()
    for part in (magic, 1001, {"little_endian": True}):
        pickle.dump(part, out, 2)
    Pickler(out, 2).dump(state)
    pickle.dump([s.key for s in storages], out, 2)
    for storage in storages:
        out.write(storage.values.size.to_bytes(8, "little") + storage.values.tobytes())
    return out.getvalue()


def floats(key, count):
    return Storage(key, np.arange(count, dtype=np.float32))


def test_strides_offsets_and_shared_storages(torch_names):
    a, b = floats("a", 12), Storage("b", np.array([41, 42], np.int64))
    state = collections.OrderedDict(
        plain=Tensor(a, 0, (3, 4), (4, 1)),
        transposed=Tensor(a, 0, (4, 3), (1, 4)),
        later=Tensor(a, 5, (2, 2), (4, 2)),
        scalar=Tensor(b, 1, (), ()),
        empty=Tensor(a, 0, (0, 4), (4, 1)),
    )
    read = legacy_pickle.loads(write(torch_names, state, [b, a]))
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(read["plain"], grid)
    assert np.array_equal(read["transposed"], grid.T) and read["transposed"].flags.c_contiguous
    assert np.array_equal(read["later"], [[5, 7], [9, 11]])
    assert read["scalar"].shape == () and read["scalar"] == 42
    assert read["empty"].shape == (0, 4)


def test_a_tensor_outside_its_storage_is_refused(torch_names):
    a = floats("a", 12)
    for tensor in (Tensor(a, 1, (3, 4), (4, 1)), Tensor(a, -1, (2,), (1,)), Tensor(a, 0, (2,), (-1,))):
        with pytest.raises(WeightsError):
            legacy_pickle.loads(write(torch_names, {"x": tensor}, [a]))


def test_every_cut_of_the_file_is_refused(torch_names):
    a = floats("a", 6)
    data = write(torch_names, {"x": Tensor(a, 0, (6,), (1,))}, [a])
    assert legacy_pickle.loads(data)["x"].size == 6
    for length in range(len(data)):
        with pytest.raises(WeightsError):
            legacy_pickle.loads(data[:length])


def test_a_wrong_magic_number_is_refused(torch_names):
    a = floats("a", 6)
    with pytest.raises(WeightsError, match="magic"):
        legacy_pickle.loads(write(torch_names, {"x": Tensor(a, 0, (6,), (1,))}, [a], magic=1))


def test_code_in_the_pickle_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'run')!r}, 'w')",)

    for data in (
        pickle.dumps(Attack(), 2),
        b"".join(pickle.dumps(x, 2) for x in (legacy_pickle.MAGIC, 1001, {}, Attack())),
    ):
        with pytest.raises(WeightsError, match="not allowed"):
            legacy_pickle.loads(data)
    assert not (tmp_path / "run").exists()
