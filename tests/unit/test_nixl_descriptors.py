"""NIXL's descriptor lists: what may be given, and what can be done with one.

Names with a number are of the behaviours that a NIXL program counts on, in the order of their list.
"""

import ctypes
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock import _core
from penstock.compat.nixl import _bindings, _utils
from penstock.compat.nixl.descriptors import list_from_bytes, nixlRegDList, nixlXferDList
from penstock.compat.nixl.errors import nixlError, nixlInvalidParamError, nixlMismatchError, nixlNotFoundError
from penstock.compat.nixl.forms import registered_list, remote_list, transfer_list
from penstock.compat.nixl.memory import nixl_mem_t
from penstock.errors import TransferError

ROWS = [(4096, 64, 0), (8192, 128, 0)]
FOURS = [(4096, 64, 0, "first"), (8192, 128, 0, b"second")]
BOTH = pytest.mark.parametrize("make", [transfer_list, registered_list])
DRAM = nixl_mem_t.DRAM_SEG


def test_089_an_unknown_memory_string_is_a_key_error():
    for make in (transfer_list, registered_list, remote_list):
        for given_ in (ROWS, np.array(ROWS, np.uint64)):
            with pytest.raises(KeyError):
                make(given_, "HBM")
    names = {"DRAM": "DRAM_SEG", "VRAM": "VRAM_SEG", "FILE": "FILE_SEG", "BLOCK": "BLK_SEG", "OBJ": "OBJ_SEG"}
    for name, long_name in {**names, "cpu": "DRAM_SEG", "cuda": "VRAM_SEG"}.items():
        assert transfer_list(ROWS, name).getType().name == long_name


@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_090_arrays_and_tuples_say_the_same(dtype):
    array = np.array(ROWS, dtype)
    assert transfer_list(array, "DRAM") == transfer_list(ROWS, "DRAM") == nixlXferDList(DRAM, ROWS)
    bare = [(*row, "") for row in ROWS]
    assert registered_list(array, "DRAM") == registered_list(bare, "DRAM") == nixlRegDList(DRAM, bare)
    assert list(registered_list(FOURS, "FILE")) == [(4096, 64, 0, b"first"), (8192, 128, 0, b"second")]
    assert list(remote_list(FOURS, "DRAM"))[1] == (8192, 128, 0, b"second")


def test_090_its_own_list_is_returned_unchanged_and_the_other_kind_is_not_taken():
    transfers, registered = transfer_list(ROWS, "DRAM"), registered_list(FOURS, "DRAM")
    assert transfer_list(transfers) is transfers
    assert registered_list(registered) is registered
    assert transfer_list(registered) is None
    assert registered_list(transfers) is None


@BOTH
def test_090_what_can_not_be_read_gives_none_and_a_line_in_the_log(make, caplog):
    unclear = [
        ((ROWS, None), (FOURS, None)),  # no memory
        (([(1, 2)], "DRAM"), ([(1, 2)], "DRAM")),
        ((FOURS, "DRAM"), (ROWS, "DRAM")),  # the other's width
        ((np.zeros((2, 2), np.uint64), "DRAM"), (np.zeros((2, 4), np.uint64), "DRAM")),
        ((np.zeros(3, np.uint64), "DRAM"), (np.zeros((1, 3, 1), np.uint64), "DRAM")),
        ((np.array(ROWS, np.uint64), None), (np.array(ROWS, np.uint64), None)),
        (("text", "DRAM"), (b"bytes", "DRAM")),
    ]
    for case in unclear:
        caplog.clear()
        assert make(*case[make is registered_list]) is None
        assert [record.levelname for record in caplog.records] == ["ERROR"]


@BOTH
def test_090_arrays_of_another_dtype_or_order_are_refused(make):
    for array in (np.array(ROWS, np.float64), np.array(ROWS, np.int32), np.asfortranarray(np.array(ROWS, np.uint64))):
        with pytest.raises(ValueError, match="give C-contiguous uint64 or int64"):
            make(array, "DRAM")


@BOTH
def test_090_an_empty_list_says_nothing_about_its_kind(make):
    with pytest.raises(IndexError):
        make([], "DRAM")


@pytest.mark.parametrize("row", [(-1, 8, 0), (2**64, 8, 0), (1.5, 8, 0), ("address", 8, 0)])
def test_090_numbers_that_no_address_can_be_are_refused(row):
    with pytest.raises(nixlInvalidParamError, match="whole numbers"):
        transfer_list([row], "DRAM")
    if isinstance(row[0], int) and row[0] < 0:
        with pytest.raises(nixlInvalidParamError, match="whole numbers"):
            transfer_list(np.array([row], np.int64), "DRAM")


@BOTH
def test_091_a_contiguous_tensor_is_one_descriptor(make):
    tensor = torch.zeros(10, 3, dtype=torch.float32)
    found = make(tensor)
    assert (found.descCount(), found.getType()) == (1, DRAM)
    assert found[0][:3] == (tensor.data_ptr(), 120, 0)


@BOTH
def test_091_a_list_of_tensors_is_one_descriptor_each(make):
    tensors = [torch.zeros(5, dtype=torch.float64), torch.zeros(7, dtype=torch.bfloat16)]
    found = make(tensors)
    assert [row[:3] for row in found] == [(tensors[0].data_ptr(), 40, 0), (tensors[1].data_ptr(), 14, 0)]


@BOTH
def test_091_tensors_that_are_no_range_or_not_on_one_device_are_not_taken(make):
    whole = torch.zeros(10, 3)
    assert make(whole.T) is None
    assert make([whole, whole[:, :1]]) is None
    assert make([whole, torch.zeros(3, device="meta")]) is None
    assert make(torch.zeros(3, device="meta")) is None


def test_092_a_list_counts_finds_changes_removes_and_compares():
    rows = nixlXferDList(DRAM, ROWS)
    assert (rows.descCount(), len(rows), rows.isEmpty(), rows.getType()) == (2, 2, False, DRAM)
    assert (rows[0], rows[-1]) == (ROWS[0], ROWS[1])
    assert rows.index((8192, 128, 0)) == 1
    with pytest.raises(nixlNotFoundError):
        rows.index((8192, 129, 0))
    rows.append((1, 2, 3))
    rows.addDesc((4, 5, 6))
    rows[2] = (7, 8, 9)
    rows.remDesc(0)
    assert list(rows) == [(8192, 128, 0), (7, 8, 9), (4, 5, 6)]
    assert rows == nixlXferDList(DRAM, np.array([(8192, 128, 0), (7, 8, 9), (4, 5, 6)]))
    assert rows != nixlXferDList(nixl_mem_t.VRAM_SEG, list(rows))
    assert rows != nixlXferDList(DRAM, [*rows, (1, 1, 1)])
    rows.clear()
    assert rows.isEmpty()
    for at in (0, -1):
        with pytest.raises(IndexError):
            rows[at]
        with pytest.raises(IndexError):
            rows.remDesc(at)


def test_092_a_list_to_register_keeps_meta_with_its_row_and_trims_to_a_list_to_transfer():
    rows = nixlRegDList(nixl_mem_t.FILE_SEG, FOURS)
    assert rows.trim() == nixlXferDList(nixl_mem_t.FILE_SEG, ROWS)
    assert rows.index((8192, 128, 0, "second")) == 1
    with pytest.raises(nixlNotFoundError):
        rows.index((8192, 128, 0, "first"))
    rows[0] = (1, 2, 3, "new")
    rows.remDesc(1)
    rows.append((4, 5, 6, b"\0"))
    assert list(rows) == [(1, 2, 3, b"new"), (4, 5, 6, b"\0")]
    assert rows != nixlRegDList(nixl_mem_t.FILE_SEG, [(1, 2, 3, "new"), (4, 5, 6, b"")])
    rows.clear()
    rows.append((1, 2, 3, ""))
    assert list(rows) == [(1, 2, 3, b"")]
    with pytest.raises(nixlInvalidParamError, match="str or bytes"):
        rows.append((1, 2, 3))


def test_092_a_list_can_be_printed(capsys):
    nixlXferDList(DRAM, ROWS).print()
    assert "(4096, 64, 0), (8192, 128, 0)" in capsys.readouterr().out


WORDS = st.integers(0, 2**64 - 1)
KINDS = st.sampled_from(list(nixl_mem_t))
LISTS = st.one_of(
    st.builds(nixlXferDList, KINDS, st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=20)),
    st.builds(nixlRegDList, KINDS, st.lists(st.tuples(WORDS, WORDS, WORDS, st.binary(max_size=9)), max_size=20)),
)


@given(LISTS)
def test_092_lists_come_back_equal_from_pickle_and_from_their_own_form(rows):
    for back in (pickle.loads(pickle.dumps(rows)), list_from_bytes(rows.to_bytes())):
        assert type(back) is type(rows)
        assert back == rows
        assert list(back) == list(rows)


@given(LISTS, st.data())
def test_a_damaged_blob_is_refused_or_is_another_list_and_nothing_else(rows, data):
    blob = bytearray(rows.to_bytes())
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    try:
        found = list_from_bytes(bytes(blob))
    except nixlMismatchError:
        return
    assert found != rows


@given(LISTS, st.data())
def test_a_blob_that_is_too_short_or_too_long_is_refused(rows, data):
    blob = rows.to_bytes()
    cut = data.draw(st.integers(0, len(blob) - 1))
    for wrong in (blob[:cut], blob + b"\0"):
        with pytest.raises(nixlMismatchError, match="NIXL_ERR_MISMATCH"):
            list_from_bytes(wrong)


def test_a_pickle_is_no_blob():
    with pytest.raises(nixlMismatchError):
        list_from_bytes(pickle.dumps(nixlXferDList(DRAM, ROWS)))


def test_every_exception_is_penstocks_and_its_text_begins_with_its_status():
    kinds = [kind for name, kind in vars(_bindings).items() if name.endswith("Error")]
    assert len(kinds) == 12
    for kind in kinds:
        assert issubclass(kind, TransferError)
        assert issubclass(kind, nixlError)
        assert str(kind()) == kind.status
        again = pickle.loads(pickle.dumps(kind("because")))
        assert (type(again), str(again)) == (kind, f"{kind.status}: because")
    assert len({kind.status for kind in kinds}) == 12


def test_memory_by_address():
    first, second = _utils.malloc_passthru(5000), _utils.malloc_passthru(5000)
    assert first % 4096 == second % 4096 == 0
    assert _core.find_shared(first, 5000) is not None  # peers on this host can map it
    assert _utils.verify_transfer(first, second, 5000)
    _utils.ba_buf(first, 4999)
    assert ctypes.string_at(first, 5000) == b"\xba" * 4999 + b"\0"
    assert not _utils.verify_transfer(first, second, 5000)
    for address in (first, second):
        _utils.free_passthru(address)
    assert _core.find_shared(first, 5000) is None
    with pytest.raises(TransferError):
        _utils.free_passthru(first)
    with pytest.raises(ValueError, match="at least 1"):
        _utils.malloc_passthru(0)
