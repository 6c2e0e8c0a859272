"""HMC's buffers on a GPU, by a driver that keeps its memory on the CPU: what can be tested where there is no GPU.

It refuses what the real one would: calls without a context, copies within one place, memory that is freed twice.
"""

import ctypes
import gc
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.compat import hmc
from penstock.compat.hmc import device
from penstock.errors import ClosedError
from penstock.transfer import Agent

GPU = hmc.MemoryType.NVIDIA_GPU
SIZE = 4096

DRIVER = r"""
#include <stdlib.h>
#include <string.h>
typedef unsigned long long address;
static __thread int depth;
static int started;
int live;
int cuInit(unsigned flags) { started = 1; return flags; }
int cuDeviceGetCount(int *count) { *count = started ? 2 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &depth + device; return device > 1 ? 101 : 0; }
int cuCtxPushCurrent_v2(void *context) { depth++; return context == 0; }
int cuCtxPopCurrent_v2(void **context) { depth--; *context = &depth; return 0; }
int cuCtxSynchronize(void) { return depth == 1 ? 0 : 201; }
int cuMemAlloc_v2(address *at, size_t size) {
  if (depth != 1) return 201;
  if (size > (1ull << 30)) return 2;
  live++;
  return (*at = (address)malloc(size)) == 0;
}
int cuMemFree_v2(address at) { if (depth != 1) return 201; live--; free((void *)at); return 0; }
int cuMemcpy(address to, address from, size_t size) {
  if (depth != 1) return 201;
  if (to < from + size && from < to + size) return 1;
  memcpy((void *)to, (void *)from, size);
  return 0;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    library = folder / "driver.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "driver.c"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_LIBRARY", str(library))
        _forget_driver()
        yield ctypes.CDLL(str(library))
    _forget_driver()


def _forget_driver():
    device._driver.cache_clear()
    device._context.cache_clear()


def live(driver):
    return ctypes.c_int.in_dll(driver, "live").value


@pytest.fixture
def buffer(driver):
    made = hmc.IOBuffer.create(1, SIZE, hmc.MemoryType.DEFAULT)
    yield made
    made.close()
    made.close()
    assert live(driver) == 0


def test_the_accelerator_is_found_and_is_what_default_means(buffer, driver):
    assert hmc.memory_supported() is buffer.mem_type is GPU
    assert (buffer.device_id, buffer.core.device, live(driver)) == (1, 1, 1)
    described = buffer.core.shared.__cuda_array_interface__
    assert (described["shape"], described["typestr"], described["data"]) == ((SIZE,), "|u1", (buffer.ptr, False))
    with pytest.raises(hmc.HMCStatusError, match="AMD_GPU isn't there; this machine has CPU and NVIDIA_GPU"):
        hmc.IOBuffer.create(0, SIZE, hmc.MemoryType.AMD_GPU)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(offset=st.integers(0, SIZE), data=st.binary(max_size=SIZE))
def test_host_memory_and_pointers_go_in_and_out(buffer, offset, data):
    if offset + len(data) > SIZE:
        with pytest.raises(RuntimeError, match="Buffer overflow"):
            buffer.put(data, offset=offset)
        return
    assert buffer.put(data, offset=offset) == len(data)
    assert buffer.buffer_get_cpu(nbytes=len(data), offset=offset) == data
    if data:
        theirs = np.frombuffer(bytearray(data[::-1]), np.uint8)
        back = np.empty_like(theirs)
        buffer.put(theirs.ctypes.data, nbytes=theirs.nbytes, offset=offset, device="ptr")
        buffer.get_into(back.ctypes.data, nbytes=back.nbytes, offset=offset, device="ptr")
        assert back.tobytes() == data[::-1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(to=st.integers(0, SIZE), start=st.integers(0, SIZE), nbytes=st.integers(0, SIZE))
def test_moves_inside_may_overlap(buffer, to, start, nbytes):
    nbytes = min(nbytes, SIZE - max(to, start))
    model = bytearray(np.random.default_rng(to).bytes(SIZE))
    buffer.put(model)
    buffer.buffer_copy_within(dst_offset=to, src_offset=start, nbytes=nbytes)
    model[to : to + nbytes] = model[start : start + nbytes]
    assert buffer.buffer_get_cpu(nbytes=SIZE) == model


def test_memory_copies_and_is_freed_once(driver):
    memory = hmc.Memory(0)
    ok = hmc.Status.SUCCESS
    assert (memory.getInitStatus(), memory.getMemoryType()) == (ok, GPU)
    one, two = (memory.allocateBuffer(100)[1] for _ in range(2))
    source, out = bytes(range(100)), bytearray(100)
    assert memory.copyHostToDevice(one, source, 100) is memory.copyDeviceToDevice(two, one, 100) is ok
    assert memory.copyDeviceToHost(out, two, 100) is ok
    assert out == source
    assert memory.copyDeviceToHost(out, two, 101) is hmc.Status.ERROR
    assert memory.allocateBuffer(1 << 40) == (hmc.Status.ERROR, None)
    assert [memory.freeBuffer(each) for each in (one, one, two)] == [ok] * 3
    assert live(driver) == 0


def test_what_the_driver_refuses_is_an_error(driver):
    with pytest.raises(hmc.HMCError, match="cuDevicePrimaryCtxRetain failed with code 101"):
        hmc.IOBuffer.create(7, SIZE, GPU)


def test_a_closed_buffer_says_so(buffer):
    buffer.close()
    with pytest.raises(ClosedError):
        buffer.put(b"x")


def test_memory_that_an_agent_has_registered_outlives_its_buffer(driver):
    made = hmc.IOBuffer.create(0, SIZE, GPU)
    with Agent("keeper") as agent:
        registration = agent.register(made.core.shared)
        assert (registration.memory, registration.table.tolist()) == ("VRAM", [[made.ptr, SIZE, 0]])
        made.close()
        del made
        assert live(driver) == 1
        registration.close()
        del registration
    gc.collect()
    assert live(driver) == 0


def test_sessions_of_a_gpu_need_the_network_plane_and_say_so(driver, monkeypatch):
    monkeypatch.setattr("penstock.transfer.network_plane.find_ucx", list)
    with (
        hmc.create_session(device_id=0, buffer_size=SIZE, mem_type=GPU, timeout_s=5) as session,
        pytest.raises(hmc.HMCStatusError, match="no UCX was found") as found,
    ):
        session.init_server("127.0.0.1", 0, conn=hmc.ConnType.UCX)
    assert found.value.status is hmc.Status.UNSUPPORT
