"""Where things lie in memory, whatever they are."""

import array
import ctypes
import gc
import mmap
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch

from penstock.budget import Budget
from penstock.errors import ConfigError
from penstock.transfer.memory import ranges_of
from penstock.transfer.table import coalesced, table_of


def rows(thing, memory=None):
    return ranges_of(thing, memory).table.tolist()


def contents(ranges):
    return b"".join(ctypes.string_at(address, length) for address, length, _ in ranges.table.tolist())


class OnlyDlpack:
    """Something that speaks nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self):
        return self.array.__dlpack__()


class CudaArray:
    """What CuPy, Numba and others show of their arrays."""

    def __init__(self, shape, strides=None, device=None):
        face = {"shape": shape, "typestr": "<f4", "data": (0x7F00_0000_0000, False), "strides": strides, "version": 3}
        self.__cuda_array_interface__ = face
        if device is not None:
            self.__dlpack_device__ = lambda: (2, device)


@pytest.mark.parametrize(
    ("make", "writable"),
    [
        (lambda data: data, False),
        (bytearray, True),
        (memoryview, False),
        (lambda data: array.array("B", data), True),
        (lambda data: np.frombuffer(data, np.uint8), False),
        (lambda data: np.frombuffer(bytearray(data), "<i4").reshape(2, 4), True),
        (lambda data: np.array(data, "S"), True),
        (lambda data: torch.frombuffer(bytearray(data), dtype=torch.int16).reshape(2, 4, 2), True),
        (lambda data: torch.nn.Parameter(torch.frombuffer(bytearray(data), dtype=torch.float32)), True),
        (lambda data: OnlyDlpack(np.frombuffer(bytearray(data), np.uint16).reshape(4, 4)), True),
    ],
)
def test_the_bytes_of_a_thing(make, writable):
    data = bytes(range(65, 65 + 32))
    for given in (make(data), [make(data)], (make(data), make(data))):
        found = ranges_of(given)
        assert contents(found) == data * len(found) and len(found) == (len(given) if isinstance(given, tuple) else 1)
        assert (found.memory, found.writable) == ("DRAM", writable) and not found.table[:, 2].any()


def test_regions_and_mapped_memory():
    region = Budget(1 << 20).reserve(4096, 1.0).region()
    memoryview(region)[:] = bytes(range(256)) * 16
    mapped = mmap.mmap(-1, 4096)
    mapped[:] = b"m" * 4096
    assert contents(ranges_of([region, mapped])) == bytes(range(256)) * 16 + b"m" * 4096


def test_plain_addresses():
    assert rows((4096, 16)) == rows([(4096, 16)]) == rows((np.uint64(4096), 16, 0)) == [[4096, 16, 0]]
    assert rows([(4096, 16, 1), (8192, 1, 0)], "VRAM") == [[4096, 16, 1], [8192, 1, 0]]
    assert ranges_of((4096, 16, 3), "VRAM").memory == "VRAM" and ranges_of((4096, 16)).memory == "DRAM"
    assert ranges_of((4096, 16)).keepalive == ()


def test_an_array_is_a_table_of_addresses_only_when_the_memory_is_said():
    table = np.array([[4096, 16], [8192, 16]], np.int64)
    assert rows(table, "DRAM") == [[4096, 16, 0], [8192, 16, 0]]
    assert rows(table) == [[table.ctypes.data, 32, 0]]
    with pytest.raises(ConfigError, match="lies in DRAM; leave memory out"):
        ranges_of(bytearray(8), "VRAM")


def test_a_list_of_several_things_keeps_their_order():
    numbers, tensor, data = np.arange(4), torch.arange(3), bytearray(5)
    found = ranges_of([tensor, numbers, data, (4096, 7)])
    assert found.table[:, 1].tolist() == [24, 32, 5, 7]
    assert found.table[:2, 0].tolist() == [tensor.data_ptr(), numbers.ctypes.data]


def test_cuda_arrays_without_cuda():
    assert ranges_of(CudaArray((2, 3))).memory == "VRAM"
    assert rows([CudaArray((2, 3)), CudaArray((4,), (4,), device=1)]) == [
        [0x7F00_0000_0000, 24, 0],
        [0x7F00_0000_0000, 16, 1],
    ]
    with pytest.raises(ConfigError, match="CUDA array of shape \\(2, 3\\) and strides \\(24, 8\\) isn't contiguous"):
        ranges_of(CudaArray((2, 3), (24, 8)))
    with pytest.raises(ConfigError, match="DRAM and VRAM in one list"):
        ranges_of([CudaArray((2, 3)), bytearray(3)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (list, "an empty list"),
        (tuple, "an empty list"),
        (lambda: np.zeros((0, 3), np.uint64), "length 0"),
        (lambda: 7, "int isn't memory; give a region"),
        (lambda: "text", "str isn't memory"),
        (lambda: None, "NoneType isn't memory"),
        (lambda: [4096, 16], "int isn't memory"),
        (lambda: [[4096, 16]], "list isn't memory"),
        (lambda: b"", "an empty buffer"),
        (lambda: memoryview(b"abcd")[::2], "isn't contiguous"),
        (lambda: np.arange(8)[::2], "isn't contiguous in row-major order"),
        (lambda: np.ones((2, 3), order="F"), "isn't contiguous in row-major order"),
        (lambda: np.array(["a", None], object), "references to objects"),
        (lambda: np.ones(0), "length 0"),
        (lambda: torch.ones(3, 4).T, "tensor 0 of shape \\(4, 3\\) and strides \\(1, 4\\) isn't contiguous"),
        (lambda: [torch.ones(2), torch.ones(4)[::2]], "tensor 1 of shape \\(2,\\)"),
        (lambda: torch.ones(0), "length 0"),
        (lambda: torch.ones(2, 2).to_sparse(), "a tensor without memory of its own"),
        (lambda: torch.ones(4, device="meta"), "tensors on meta"),
        (lambda: [torch.ones(4), torch.ones(4, device="meta")], "its address is 0"),
        (lambda: OnlyDlpack(np.arange(8)[::2]), "isn't contiguous"),
        (lambda: OnlyDlpack(7), "gives no DLPack capsule"),
        (lambda: (4096, 0), "length 0"),
        (lambda: (-4096, 16), "negative number -4096"),
        (lambda: (2**64 - 16, 16), "at most 2\\*\\*64 - 1"),
        (lambda: (2**64, 16), "from 0 to 2\\*\\*64 - 1"),
        (lambda: [(4096, 16), (4096,)], "rows of equal length"),
        (lambda: [(4096, "a")], "'a' in ranges|rows of equal length|whole numbers"),
        (lambda: (1, 2, 3, 4), "ranges of shape"),
    ],
)
def test_what_is_not_memory(make, said):
    with pytest.raises(ConfigError, match=said):
        ranges_of(make())


def test_what_owns_the_memory_is_kept_alive():
    numbers, tensor, packed = np.arange(4), torch.arange(4), np.arange(9)
    watched = [weakref.ref(numbers), weakref.ref(packed)]
    found = ranges_of([numbers, tensor, OnlyDlpack(packed)])
    expected = contents(found)
    tensor.data = torch.zeros(4)  # lets go of the storage that was found
    del numbers, tensor, packed
    gc.collect()
    assert all(watch() is not None for watch in watched) and contents(found) == expected
    del found
    gc.collect()
    assert not any(watch() is not None for watch in watched)


def test_a_bytearray_cannot_move_away():
    data = bytearray(8)
    found = ranges_of(data)
    with pytest.raises(BufferError):
        data.extend(bytes(1 << 20))
    del found
    data.extend(b"now")


def test_thousands_of_tensors_cost_little():
    arena = torch.empty(5000 * 64)
    tensors = [arena[first : first + 64] for first in range(0, arena.numel(), 64)]
    seconds = []
    for _ in range(7):
        started = time.process_time()
        found = ranges_of(tensors)
        merged = coalesced(found.table)
        seconds.append(time.process_time() - started)
    assert merged.tolist() == [[arena.data_ptr(), arena.nbytes, 0]]
    # 2 ms on a quiet machine; what a Python step for each tensor would cost is ten times that.
    assert min(seconds) < 0.02, seconds


def test_neighbours_are_merged():
    assert coalesced(table_of([(10, 5), (0, 5), (5, 5), (20, 1), (12, 2)])).tolist() == [[0, 15, 0], [20, 1, 0]]
    assert coalesced(table_of([(0, 5, 1), (5, 5, 0), (5, 5, 1)])).tolist() == [[5, 5, 0], [0, 10, 1]]
    assert coalesced(table_of([(0, 100), (10, 5), (20, 80), (100, 1)])).tolist() == [[0, 101, 0]]
    assert coalesced(table_of([])).tolist() == []


def test_importing_it_imports_no_torch():
    code = "import sys\nimport penstock.transfer\n"
    code += "assert not {'torch', 'libucx'} & set(sys.modules)\nfrom penstock.transfer.memory import ranges_of\n"
    code += "assert len(ranges_of([bytearray(3)])) == 1 and 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
