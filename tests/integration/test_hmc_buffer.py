"""The buffer of an HMC session: what goes in comes out, at any offset, and nothing goes beyond its ends."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.compat import hmc
from penstock.errors import ClosedError, ConfigError

torch = pytest.importorskip("torch")

SIZE = 4096


@pytest.fixture
def buffer():
    made = hmc.IOBuffer.create(0, SIZE, hmc.MemoryType.CPU)
    yield made
    made.close()


def test_a_buffer_says_what_it_is(buffer):
    assert (buffer.size, buffer.mem_type, buffer.device_id) == (SIZE, hmc.MemoryType.CPU, 0)
    assert buffer.ptr % 4096 == 0
    assert (buffer.core.size, buffer.core.ptr) == (SIZE, buffer.ptr)
    assert bytes(buffer.buffer_get_cpu(nbytes=SIZE)) == bytes(SIZE)


PAYLOADS = [
    (b"hello hmc", bytearray(9)),
    (bytearray(b"hello hmc"), memoryview(bytearray(9))),
    (memoryview(b"hello hmc")[::2], np.empty(5, np.uint8)),
    (np.arange(100, dtype=np.int32), np.empty(100, np.int32)),
    (np.arange(100, dtype=np.int32)[::-3], np.empty(34, np.int32)),
    (np.arange(60.0).reshape(3, 4, 5).T, np.empty((5, 4, 3))),
    (np.array(2.5), np.empty(())),
    (torch.arange(100), torch.empty(100, dtype=torch.int64)),
    (torch.arange(12.0).reshape(3, 4).t(), torch.empty(4, 3)),
    (torch.arange(64, dtype=torch.bfloat16), torch.empty(64, dtype=torch.bfloat16)),
    (torch.tensor(2.5), torch.empty(())),
    (torch.tensor([True, False, True]), torch.empty(3, dtype=torch.bool)),
]


@pytest.mark.parametrize("offset", [0, 1, 777])
@pytest.mark.parametrize(("source", "target"), PAYLOADS)
def test_e2_116_every_kind_of_data_goes_in_and_out_at_any_offset(buffer, source, target, offset):
    before = bytes(buffer.buffer_get_cpu(nbytes=SIZE))
    count = buffer.put(source, offset=offset)
    buffer.get_into(target, nbytes=count, offset=offset)
    if isinstance(source, torch.Tensor):
        assert torch.equal(source.contiguous(), target)
    else:
        assert memoryview(target).tobytes() == memoryview(source).tobytes()
        assert count == memoryview(source).nbytes
    after = bytes(buffer.buffer_get_cpu(nbytes=SIZE))
    assert after[:offset] == before[:offset]
    assert after[offset + count :] == before[offset + count :]
    copied = buffer.buffer_get_cpu(nbytes=count, offset=offset)
    assert isinstance(copied, bytearray)
    assert copied == after[offset : offset + count]


@given(st.integers(0, SIZE), st.integers(0, SIZE), st.integers(0, SIZE))
def test_e2_116_moves_inside_the_buffer_may_overlap(to, start, nbytes):
    buffer = hmc.IOBuffer.create(0, SIZE, hmc.MemoryType.CPU)
    model = bytearray(np.random.default_rng(to).bytes(SIZE))
    buffer.put(model)
    if max(to, start) + nbytes > SIZE:
        with pytest.raises(RuntimeError, match="Buffer overflow"):
            buffer.buffer_copy_within(dst_offset=to, src_offset=start, nbytes=nbytes)
    else:
        buffer.buffer_copy_within(dst_offset=to, src_offset=start, nbytes=nbytes)
        model[to : to + nbytes] = model[start : start + nbytes]
    assert buffer.buffer_get_cpu(nbytes=SIZE) == model
    buffer.close()


def test_a_part_of_the_data_is_taken_where_a_size_says_so(buffer):
    assert buffer.put(b"hello hmc", nbytes=5, offset=10) == 5
    assert buffer.buffer_get_cpu(nbytes=7, offset=9) == b"\0hello\0"


@example(offset=0, nbytes=SIZE + 1)
@example(offset=SIZE, nbytes=1)
@example(offset=-1, nbytes=1)
@example(offset=0, nbytes=SIZE)
@given(offset=st.integers(-10, SIZE + 10), nbytes=st.integers(0, SIZE + 10))
def test_e2_117_nothing_goes_beyond_the_buffers_ends(offset, nbytes):
    buffer = hmc.IOBuffer.create(0, SIZE, hmc.MemoryType.CPU)
    calls = [
        lambda: buffer.put(bytes(nbytes), offset=offset),
        lambda: buffer.buffer_get_cpu(nbytes=nbytes, offset=offset),
        lambda: buffer.buffer_get_cpu_into(bytearray(nbytes), nbytes=nbytes, offset=offset),
        lambda: buffer.core.writeFromCpu(bytes(nbytes), nbytes, offset),
        lambda: buffer.core.readToCpu(bytearray(nbytes), nbytes, offset),
    ]
    inside = offset >= 0 and offset + nbytes <= SIZE
    for call in calls:
        if inside:
            call()
        else:
            with pytest.raises(RuntimeError, match=f"Buffer overflow: offset {offset} .* the buffer has {SIZE}"):
                call()
    buffer.close()


def test_e2_117_bad_sources_and_destinations_fail_with_their_types(buffer):
    with pytest.raises(RuntimeError, match="Source buffer too small: nbytes is 4, the source has 3 bytes"):
        buffer.put(b"abc", nbytes=4)
    with pytest.raises(ValueError, match="Destination too small: have=3 need=4"):
        buffer.buffer_get_cpu_into(bytearray(3), nbytes=4)
    with pytest.raises(RuntimeError, match="Destination buffer too small"):
        buffer.core.readToCpu(bytearray(3), 4, 0)
    with pytest.raises(ValueError, match="read-only"):
        buffer.buffer_get_cpu_into(b"abc", nbytes=3)
    for scattered in (np.empty(6)[::2], torch.empty(3, 4).t()):
        with pytest.raises(ValueError, match="not contiguous"):
            buffer.buffer_get_cpu_into(scattered, nbytes=3)
    with pytest.raises(TypeError, match="has no bytes"):
        buffer.put("text")
    with pytest.raises(ValueError, match="give 'cpu', 'cuda', 'ptr' or None"):
        buffer.put(b"abc", device="tpu")


def test_e2_126_a_buffer_on_the_cpu_refuses_device_pointers(buffer):
    for call in (
        lambda: buffer.buffer_put_gpu_ptr(4096, nbytes=8),
        lambda: buffer.buffer_get_gpu_ptr(4096, nbytes=8),
        lambda: buffer.put(4096, nbytes=8, device="ptr"),
    ):
        with pytest.raises(hmc.HMCStatusError, match="the buffer is on the CPU, not on a GPU") as found:
            call()
        assert found.value.status is hmc.Status.ERROR
    with pytest.raises(ValueError, match="nbytes is needed with a pointer"):
        buffer.put(4096, device="ptr")
    with pytest.raises(TypeError, match="a device pointer is b'abc'; give a whole number"):
        buffer.put(b"abc", nbytes=3, device="ptr")
    with pytest.raises(ValueError, match="not on a CUDA device"):
        buffer.buffer_put_cuda(torch.ones(3))
    with pytest.raises(TypeError, match="no torch tensor"):
        buffer.buffer_put_cuda(b"abc")


@pytest.mark.parametrize("size", [0, -1, 1.5, "1", None, True])
def test_a_buffer_has_at_least_one_byte(size):
    with pytest.raises((ConfigError, TypeError), match="buffer_size"):
        hmc.IOBuffer.create(0, size, hmc.MemoryType.CPU)


def test_a_closed_buffer_says_so(buffer):
    buffer.close()
    buffer.close()
    for call in (lambda: buffer.put(b"x"), lambda: buffer.buffer_get_cpu(nbytes=1), lambda: buffer.ptr):
        with pytest.raises(ClosedError, match="the buffer was closed"):
            call()
