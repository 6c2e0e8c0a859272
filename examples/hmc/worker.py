"""A worker of the parameter server with HMC's calls: reads weights, computes a gradient, writes it, every round.

python examples/hmc/worker.py 127.0.0.1 2025 1      # the server's address and port, this worker's id, from 1
"""

import sys

import numpy as np
from server import DIMENSION, ROUNDS, SERVER_ID, WEIGHT_BYTES, slot

from penstock.compat import hmc


def main(ip: str, port: int, worker: int) -> None:
    """Takes part in every round."""
    by = hmc.ConnType.UCX
    with hmc.create_session(buffer_size=2 * WEIGHT_BYTES, mem_type=hmc.MemoryType.CPU, local_ip=ip) as sess:
        sess.connect(peer_id=SERVER_ID, self_id=worker, peer_ip=ip, data_port=port, ctrl_tcp_port=port + 2, conn=by)
        weights = np.empty(DIMENSION, np.float32)
        target = np.linspace(-1, 1, DIMENSION, dtype=np.float32)
        for number in range(ROUNDS):
            sess.get_into(ip, weights, conn=by)  # out of the server's buffer, at offset 0 of both
            gradient = 2 * (weights - target)
            sess.buffer_put_then_put(ip, port, gradient, local_off=WEIGHT_BYTES, remote_off=slot(worker), conn=by)
            sess.ctrl_send(SERVER_ID, number)
            assert sess.ctrl_recv(SERVER_ID) == number
        print(f"worker {worker} is done")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
