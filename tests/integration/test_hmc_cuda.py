"""HMC sessions whose buffers lie on a GPU."""

import numpy as np
import pytest

from hmc_party import Party
from penstock.compat import hmc
from puppet import PuppetError

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

IP = "127.0.0.1"
UCX = hmc.ConnType.UCX
SIZE = 1 << 20
SERVER = f"""
import torch
from penstock.compat import hmc
UCX = hmc.ConnType.UCX
sess = hmc.create_session(buffer_size={SIZE}, mem_type=hmc.MemoryType.NVIDIA_GPU, timeout_s=20)
sess.init_server({IP!r}, 0, conn=UCX)
"""


@pytest.fixture(scope="module")
def server():
    with Party(SERVER) as process:
        yield process


@pytest.fixture(params=[hmc.MemoryType.NVIDIA_GPU, hmc.MemoryType.DEFAULT])
def client(request, server):
    with hmc.create_session(buffer_size=SIZE, mem_type=request.param, timeout_s=20) as session:
        session.connect(IP, server.value("sess.ports[UCX]"), conn=UCX)
        yield session


def test_an_accelerator_is_what_default_means(client):
    assert hmc.memory_supported() is client.buf.mem_type is hmc.MemoryType.NVIDIA_GPU


@pytest.mark.parametrize("bias", [0, 4096, 777])
def test_e2_126_tensors_of_a_gpu_go_to_a_peers_buffer_and_back(server, client, bias):
    sent = torch.randn(1000, 7, device="cuda", dtype=torch.bfloat16)
    client.put_torch_cuda(IP, sent, bias=bias, conn=UCX)
    server.do(f"found = torch.empty(1000, 7, device='cuda', dtype=torch.bfloat16); "
              f"sess.buf.get_into(found, nbytes=14000, offset={bias})")  # fmt: skip
    assert (
        server.value("found.cpu().view(torch.uint8).numpy().tobytes()")
        == sent.cpu().view(torch.uint8).numpy().tobytes()
    )
    back = torch.zeros_like(sent)
    client.get_torch_cuda(IP, back, bias=bias, conn=UCX)
    assert torch.equal(back, sent)
    by_kind = torch.zeros_like(sent)
    client.put(IP, sent + 1, bias=bias)  # a tensor says itself where it is
    client.get_into(IP, by_kind, bias=bias)
    assert torch.equal(by_kind, sent + 1)


def test_e2_126_what_is_still_being_computed_is_waited_for(client):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        slow = torch.ones(100_000, device="cuda")
        for _ in range(200):
            slow = slow * 1.0 + 1.0
        client.put_torch_cuda(IP, slow, conn=UCX)
    assert np.frombuffer(client.get(IP, 400_000), np.float32).tolist() == [201.0] * 100_000


def test_e2_126_host_memory_pointers_and_moves_inside(client):
    data = np.arange(1000, dtype=np.int32)
    client.put(IP, data, bias=64)
    assert client.get(IP, 4000, bias=64) == data.tobytes()
    scratch = torch.zeros(1000, dtype=torch.int32, device="cuda")
    client.buf.get_into(scratch.data_ptr(), nbytes=4000, offset=64, device="ptr")
    assert scratch.tolist() == data.tolist()
    doubled = scratch * 2
    torch.cuda.synchronize()  # a pointer doesn't say what is still being computed
    client.buf.put(doubled.data_ptr(), nbytes=4000, offset=100, device="ptr")
    client.buf.buffer_copy_within(dst_offset=104, src_offset=100, nbytes=4000)
    assert np.frombuffer(client.buf.buffer_get_cpu(nbytes=4000, offset=104), np.int32).tolist() == (data * 2).tolist()


def test_e2_126_bounds_hold_on_a_gpu_as_well(client):
    tensor = torch.zeros(SIZE + 1, dtype=torch.uint8, device="cuda")
    for call in (lambda: client.put(IP, tensor), lambda: client.buf.buffer_get_cpu(nbytes=2, offset=SIZE - 1)):
        with pytest.raises(RuntimeError, match="Buffer overflow"):
            call()
    with pytest.raises(ValueError, match="not contiguous"):
        client.buf.buffer_get_cuda(tensor[::2], nbytes=8)
    with pytest.raises(RuntimeError, match="Source buffer too small"):
        client.buf.buffer_put_cuda(tensor[:4], nbytes=5)


def test_e2_126_a_buffer_on_the_cpu_refuses_device_tensors(server):
    with hmc.create_session(buffer_size=SIZE, timeout_s=20) as session:
        session.connect(IP, server.value("sess.ports[UCX]"), conn=UCX)
        with pytest.raises(hmc.HMCStatusError, match="the buffer is on the CPU") as found:
            session.put(IP, torch.ones(4, device="cuda"))
        assert found.value.status is hmc.Status.ERROR
        with pytest.raises(ValueError, match="not in the CPU's memory"):
            session.put(IP, torch.ones(4, device="cuda"), device="cpu")
        session.put(IP, b"from the CPU")
    with pytest.raises(PuppetError):
        server.value("sess.put('10.1.2.3', b'x')")


def test_e2_126_memory_of_a_gpu_allocates_and_copies():
    memory = hmc.Memory(0)
    assert memory.getMemoryType() is hmc.MemoryType.NVIDIA_GPU
    status, one = memory.allocateBuffer(1000)
    two = memory.allocatePeerableBuffer(1000)[1]
    S = hmc.Status
    source, out = bytes(range(250)) * 4, bytearray(1000)
    assert (
        status is memory.copyHostToDevice(one, source, 1000) is memory.copyDeviceToDevice(two, one, 1000) is S.SUCCESS
    )
    assert memory.copyDeviceToHost(out, two, 1000) is S.SUCCESS
    assert out == source
    assert memory.freeBuffer(one) is memory.freeBuffer(one) is memory.freeBuffer(two) is S.SUCCESS
    assert hmc.memory_type_from_torch_tensor(torch.ones(1, device="cuda")) is hmc.MemoryType.NVIDIA_GPU
