"""A parameter server with HMC's calls: it holds weights that workers read, and slots that they write gradients into.

    python examples/hmc/server.py 127.0.0.1 2025 2      # address, port, how many workers

It never touches a connection while weights are read and gradients written: its buffer is read and written from outside.
Only the end of a round is told, by control tags. ``worker.py`` is the other side.
"""

import sys

import numpy as np

from penstock.compat import hmc

DIMENSION = 4096  # weights
ROUNDS = 50
SERVER_ID = 0
WEIGHT_BYTES = DIMENSION * 4


def slot(worker: int) -> int:
    """Where in the server's buffer a worker's gradient goes: behind the weights, in the order of ids from 1."""
    return worker * WEIGHT_BYTES


def main(ip: str, port: int, worker_count: int) -> None:
    """Trains until all rounds are done, and prints how far the weights are from what is to be learned."""
    with hmc.create_session(buffer_size=(worker_count + 1) * WEIGHT_BYTES, mem_type=hmc.MemoryType.CPU) as sess:
        sess.init_server(bind_ip=ip, ucx_port=port, rdma_port=port + 1, ctrl_tcp_port=port + 2, self_id=SERVER_ID)
        print("listening", flush=True)
        workers = range(1, worker_count + 1)
        weights = np.zeros(DIMENSION, np.float32)
        sess.buf.put(weights)
        gradient = np.empty_like(weights)
        for number in range(ROUNDS):
            for worker in workers:
                assert sess.ctrl_recv(worker) == number  # its gradient of this round is in our buffer
            for worker in workers:
                sess.buf.get_into(gradient, offset=slot(worker))
                weights -= 0.1 * gradient / worker_count
            sess.buf.put(weights)
            for worker in workers:
                sess.ctrl_send(worker, number)  # the weights of the next round are there
        target = np.linspace(-1, 1, DIMENSION, dtype=np.float32)
        print(f"{ROUNDS} rounds with {worker_count} workers, error {np.abs(weights - target).max():.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
