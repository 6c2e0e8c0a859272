"""HMC's enumerations, errors, and what its calls take as bytes."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.compat.hmc.enums import ConnType, CtrlTransport, MemoryType, Status, member, status_t
from penstock.compat.hmc.errors import HMCError, HMCStatusError, operation, status_of
from penstock.compat.hmc.memory import Buffer, Memory, memory_supported, memory_type_from_torch_tensor, resolved
from penstock.compat.hmc.payload import byte_count, readable, taken, writable
from penstock.compat.hmc.pending import NoSuchTransfer, Pending
from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    PeerLost,
    PenstockError,
    TransferError,
    TransportUnavailable,
)

torch = pytest.importorskip("torch")


def test_e2_115_enum_values_are_hmcs_and_what_is_none_is_refused():
    assert [(each.name, each.value) for each in Status] == [
        ("SUCCESS", 0),
        ("ERROR", 1),
        ("UNSUPPORT", 2),
        ("INVALID_CONFIG", 3),
        ("TIMEOUT", 4),
        ("NOT_FOUND", 5),
    ]
    names = ["DEFAULT", "CPU", "NVIDIA_GPU", "AMD_GPU", "CAMBRICON_MLU", "MOORE_GPU"]
    assert [(each.name, each.value) for each in MemoryType] == [(name, at) for at, name in enumerate(names)]
    assert (ConnType.RDMA, ConnType.UCX, CtrlTransport.TCP, CtrlTransport.UDS) == (0, 1, 0, 1)
    assert status_t is Status
    assert member(ConnType, 1, "conn") is ConnType.UCX
    assert member(ConnType, np.int32(0), "conn") is ConnType.RDMA
    for bad in ("UCX", None, 1.0, True, MemoryType.CPU):
        with pytest.raises(TypeError, match="conn is .*give a ConnType: RDMA"):
            member(ConnType, bad, "conn")
    with pytest.raises(ValueError, match=r"conn is 7; ConnType has RDMA \(0\), UCX \(1\)"):
        member(ConnType, 7, "conn")


def test_errors_are_hmcs_and_penstocks():
    error = HMCStatusError("put", Status.TIMEOUT, "why")
    assert isinstance(error, HMCError) and isinstance(error, TransferError) and isinstance(error, RuntimeError)
    assert (error.status, str(error)) == (Status.TIMEOUT, "put failed (status=TIMEOUT): why")
    assert str(HMCStatusError("put", Status.ERROR)) == "put failed (status=ERROR)"


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (DeadlineExceeded("late"), Status.TIMEOUT),
        (TransportUnavailable("no RDMA"), Status.UNSUPPORT),
        (NoSuchTransfer("7"), Status.NOT_FOUND),
        (PeerLost("gone"), Status.ERROR),
        (ConnectionResetError("reset"), Status.ERROR),
    ],
)
def test_an_operation_fails_with_the_status_that_its_error_is(raised, status):
    @operation("put")
    def put():
        raise raised

    with pytest.raises(HMCStatusError) as found:
        put()
    assert (found.value.status, found.value.__cause__) == (status, raised)


@pytest.mark.parametrize("raised", [HMCError("bounds"), ConfigError("argument"), TypeError("type"), KeyError("a bug")])
def test_what_is_wrong_with_arguments_comes_as_it_is(raised):
    @operation("put")
    def put():
        raise raised

    with pytest.raises(type(raised)) as found:
        put()
    assert found.value is raised
    assert status_of(KeyError()) is None


SOURCES = [
    b"abcdef",
    bytearray(b"abcdef"),
    memoryview(b"abcdef"),
    memoryview(b"abcdef")[::2],
    memoryview(np.arange(6, dtype=np.int32).reshape(2, 3)),
    np.arange(20, dtype=np.int16),
    np.arange(20, dtype=np.int16)[::3],
    np.arange(12.0).reshape(3, 4).T,
    np.array(2.5),
    np.zeros((0, 3)),
    np.ma.masked_array([1, 2], mask=[0, 1]),
    torch.arange(6),
    torch.arange(12).reshape(3, 4).t(),
    torch.tensor(2.5),
    torch.empty(0),
    torch.arange(6, dtype=torch.bfloat16),
    torch.tensor([1 + 2j]).conj(),
    torch.ones(3, requires_grad=True),
    (ctypes.c_uint16 * 3)(1, 2, 3),
]


def expected_bytes(source):
    if isinstance(source, torch.Tensor):
        plain = source.detach().resolve_conj().contiguous()
        return bytes(plain.reshape(-1).view(torch.uint8).tolist())
    return np.asarray(source).tobytes()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: f"{type(source).__module__}.{type(source).__name__}")
def test_every_kind_of_data_is_its_bytes_in_order(source):
    found = readable(source)
    assert found.tobytes() == expected_bytes(source)
    assert byte_count(source) == found.nbytes


@pytest.mark.parametrize(
    "destination",
    [
        bytearray(6),
        memoryview(bytearray(6)),
        np.empty((2, 3), dtype=np.int16),
        np.empty((), dtype=np.float64),
        torch.empty(2, 3, dtype=torch.bfloat16),
        torch.empty(()),
    ],
    ids=lambda each: type(each).__name__,
)
def test_destinations_are_filled_in_place(destination):
    target = writable(destination)
    target[:] = range(1, 1 + target.nbytes)
    assert readable(destination).tolist() == list(range(1, 1 + byte_count(destination)))


@pytest.mark.parametrize(
    ("destination", "why"),
    [
        (b"abc", "read-only"),
        (memoryview(b"abc"), "read-only"),
        (np.arange(3)[::2], "not contiguous"),
        (np.arange(12).reshape(3, 4).T, "not contiguous"),
        (np.array([None]), "Python objects"),
        (torch.arange(12).reshape(3, 4).t(), "not contiguous"),
        (torch.tensor([1 + 2j]).conj(), "conjugate"),
    ],
)
def test_what_cant_be_filled_is_a_value_error(destination, why):
    if isinstance(destination, np.ndarray) and why == "read-only":
        destination.flags.writeable = False
    with pytest.raises(ValueError, match=why):
        writable(destination)


def test_read_only_arrays_are_refused():
    array = np.zeros(3)
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        writable(array)


@pytest.mark.parametrize("nothing", [None, 7, "text", object(), [1, 2]])
def test_what_has_no_bytes_is_a_type_error(nothing):
    for use in (readable, writable, byte_count):
        with pytest.raises(TypeError, match="has no bytes"):
            use(nothing)


@given(st.integers(0, 100), st.none() | st.integers(-5, 105))
def test_a_size_takes_a_part_of_the_source(available, count):
    if count is None or 0 <= count <= available:
        assert taken(count, available) == (available if count is None else count)
    else:
        with pytest.raises(ConfigError if count < 0 else HMCError):
            taken(count, available)


def test_memory_of_the_cpu_allocates_copies_and_frees():
    memory = Memory(0, MemoryType.CPU)
    assert (memory.getInitStatus(), memory.getMemoryType(), memory.getDeviceId()) == (Status.SUCCESS, MemoryType.CPU, 0)
    status, buffer = memory.allocateBuffer(16)
    assert status is Status.SUCCESS and isinstance(buffer, Buffer)
    view = memoryview(buffer)
    assert (view.format, view.shape, view.readonly, buffer.size) == ("B", (16,), False, 16)
    assert memory.copyHostToDevice(buffer, b"0123456789abcdef", 16) is Status.SUCCESS
    other = memory.allocatePeerableBuffer(16)[1]
    assert memory.copyDeviceToDevice(other.ptr, buffer, 16) is Status.SUCCESS
    out = bytearray(8)
    assert memory.copyDeviceToHost(out, other, 8) is Status.SUCCESS
    assert out == b"01234567"
    assert memory.copyDeviceToHost(out, other, 9) is Status.ERROR
    assert memory.copyDeviceToHost(b"12345678", other, 8) is Status.INVALID_CONFIG
    assert memory.allocateBuffer(0) == (Status.INVALID_CONFIG, None)
    view.release()
    assert memory.freeBuffer(buffer) is memory.freeBuffer(buffer) is memory.free() is Status.SUCCESS


def test_memory_that_isnt_there_says_so():
    memory = Memory(0, MemoryType.MOORE_GPU)
    assert memory.getInitStatus() is Status.UNSUPPORT
    assert memory.allocateBuffer(8) == (Status.UNSUPPORT, None)
    with pytest.raises(HMCStatusError, match=r"MOORE_GPU isn't there; this machine has CPU") as found:
        resolved(MemoryType.MOORE_GPU)
    assert found.value.status is Status.UNSUPPORT
    assert resolved(MemoryType.DEFAULT) is memory_supported()


def test_the_kind_of_memory_of_a_tensor():
    assert memory_type_from_torch_tensor(torch.ones(1)) is MemoryType.CPU
    meta = torch.ones(1, device="meta")
    assert memory_type_from_torch_tensor(meta) is MemoryType.DEFAULT
    assert memory_type_from_torch_tensor(meta, default=MemoryType.CPU) is MemoryType.CPU
    with pytest.raises(TypeError, match="ndarray is no torch tensor"):
        memory_type_from_torch_tensor(np.ones(1))


class Started:
    """A transfer that ends when a test says so."""

    def __init__(self, error=None, state="ACTIVE"):
        self.state = state
        self.error = error

    def wait(self, timeout_s=None):
        if self.state == "ACTIVE" and not timeout_s:
            raise DeadlineExceeded("not yet")
        self.state = "DONE" if self.error is None else "FAILED"
        if self.error is not None:
            raise self.error


def test_numbers_of_transfers_are_good_for_one_wait():
    pending = Pending()
    first, second = pending.add(Started()), pending.add(Started())
    assert 0 not in (first, second) and first != second
    pending.wait(first, 1.0)
    for unknown in (first, 99, [second, 99], [second, second]):
        with pytest.raises(NoSuchTransfer):
            pending.wait(unknown, 1.0)
    pending.wait([0, second], 1.0)
    pending.wait(0, 1.0)
    pending.wait([], 1.0)


def test_a_late_transfer_can_be_waited_for_again_and_a_failed_one_not():
    pending = Pending()
    late = pending.add(Started())
    with pytest.raises(DeadlineExceeded):
        pending.wait(late, 0)
    pending.wait(late, 1.0)
    failed, after = pending.add(Started(PeerLost("gone"))), pending.add(Started())
    with pytest.raises(PeerLost):
        pending.wait([failed, after], 1.0)
    with pytest.raises(NoSuchTransfer):
        pending.wait(failed, 1.0)
    pending.wait(after, 1.0)


def test_what_is_done_at_once_needs_no_number():
    assert Pending().add(None) == 0
    assert issubclass(NoSuchTransfer, PenstockError)
