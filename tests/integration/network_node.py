"""A process with one end of the network plane, driven by lines of JSON on its standard input.

Every line is ``[command, arguments]``; the answer is one line, ``{"ok": ...}`` or ``{"error": class, "text": ...}``.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np

from penstock import _core
from penstock.transfer.mail import Mail
from penstock.transfer.network_plane import find_ucx

SECRET = b"the secret of tests"
INSTANCE = b"one of the tests"


def table(*ranges):
    return np.array([(address, length, 0) for address, length in ranges], dtype=np.uint64).reshape(-1, 3)


class Node:
    def __init__(self, name, settings, nbytes, peer_timeout_s):
        self.registry = _core.Registry()
        self.inbox = _core.Inbox(self.registry)
        self.mail = Mail(name, self.inbox)
        self.memory = np.zeros(nbytes, np.uint8)
        self.base = self.memory.ctypes.data
        self.vram = False
        self.register()
        self.network = _core.Network(
            self.registry,
            self.inbox,
            library=next(each.path for each in find_ucx() if each.source == "wheel"),
            settings={"LOG_LEVEL": "fatal", **settings},
            name=name,
            instance=INSTANCE,
            secret=SECRET,
            peer_timeout_s=peer_timeout_s,
        )
        self.link = None
        self.posted = None

    def register(self):
        ranges = np.array([(self.base, len(self.memory))], dtype=np.uint64)
        self.slot, self.generation = self.registry.add(ranges, self.vram, 0)

    def use_gpu(self):
        """From now on this node's memory is a GPU's."""
        import torch

        self.tensor = torch.zeros(len(self.memory), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        self.base, self.vram = self.tensor.data_ptr(), True
        self.register()
        return self.hello()

    def gpu_fill(self, seed):
        import torch

        torch.manual_seed(seed)
        self.tensor.copy_(torch.randint(0, 255, self.tensor.shape, dtype=torch.uint8))
        torch.cuda.synchronize()

    def gpu_sum(self):
        return zlib.crc32(self.tensor.cpu().numpy())

    def hello(self):
        return {
            "address": self.network.address.hex(),
            "base": self.base,
            "nbytes": len(self.memory),
            "vram": self.vram,
            "slot": self.slot,
            "generation": self.generation,
            "version": self.network.version,
            "transports": self.network.transports,
        }

    def connect(self, peer, secret=SECRET.decode(), timeout_s=5.0):
        self.know(peer)
        self.link = self.network.connect(bytes.fromhex(peer["address"]), secret.encode(), timeout_s)
        return {"peer": self.link.peer_name, "transport": self.link.transport, "alive": self.link.alive}

    def interrupted_connect(self, peer):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            self.connect(peer, timeout_s=60.0)
        except KeyboardInterrupt:
            return "KeyboardInterrupt"
        finally:
            timer.join()

    def know(self, peer):
        """What this node believes of the peer's memory; a test may have changed it."""
        self.peer = peer
        self.remote = _core.RemoteMemory()
        ranges = np.array([(peer["base"], peer["nbytes"], 0)], dtype=np.uint64)
        self.remote.add(peer["slot"], peer["generation"], peer["vram"], 0, 0, ranges)

    def prepare(self, operation, pieces, merge=True):
        """``pieces``: (local offset, remote offset, length)."""
        local = self.registry.prepare(table(*((self.base + at, size) for at, _, size in pieces)))
        remote = self.remote.prepare(table(*((self.peer["base"] + at, size) for _, at, size in pieces)))
        return self.link.transfer(["write", "read"].index(operation), local, remote, None, None, merge)

    def start(self, operation, pieces, notification=None, timeout_s=10.0, merge=True):
        self.posted = self.prepare(operation, pieces, merge)
        return self.posted.post(notification.encode() if notification is not None else None, timeout_s)

    def finish(self, timeout_s=10.0):
        state = self.posted.wait(timeout_s)
        if state == 3:
            self.posted.raise_error()
        return state

    def move(self, *arguments, **keywords):
        self.start(*arguments, **keywords)
        return self.finish(keywords.get("timeout_s", 10.0))

    def repost(self):
        return self.posted.post(None, 1.0)

    def post_after_retiring(self):
        transfer = self.prepare("write", [[0, 0, 8]])
        self.retire()
        if transfer.post(None, 1.0) == 3:
            transfer.raise_error()

    def quiet(self, timeout_s=0.0):
        until = time.monotonic() + timeout_s
        while not self.posted.quiet() and time.monotonic() < until:
            time.sleep(0.001)
        return self.posted.quiet()

    def completion(self, timeout_s=5.0):
        """Wait as asyncio would."""
        import select

        ready, _, _ = select.select([self.network.completion_fd], [], [], timeout_s)
        self.network.clear_completions()
        return [bool(ready), self.posted.poll()]

    def notify(self, message, timeout_s=5.0):
        self.link.notify(message.encode(), timeout_s)

    def flood(self, count, nbytes, timeout_s=5.0):
        """Notify until the deadline says no; how many went."""
        for number in range(count):
            self.link.notify(number.to_bytes(4, "little") + bytes(nbytes - 4), timeout_s)
        return count

    def arrived(self, count, wait_s):
        """What came, sleeping until it is so many or the time has passed."""
        found = []
        until = time.monotonic() + wait_s
        while len(found) < count and (left := until - time.monotonic()) > 0:
            self.mail.wait(self.mail.general, left)
            found += self.mail.take(self.mail.general)
        return found

    def drain(self, wait_s=5.0, count=1):
        found = self.arrived(count, wait_s)
        return [[sender, message.decode("latin-1")[:64], len(message)] for sender, message in found]

    def drain_numbers(self, count, wait_s=10.0):
        """Of a flood: whether the numbers came in order, each once."""
        numbers = [int.from_bytes(message[:4], "little") for _, message in self.arrived(count, wait_s)]
        return numbers == list(range(count))

    def fill(self, seed, offset=0, nbytes=None):
        nbytes = len(self.memory) - offset if nbytes is None else nbytes
        self.memory[offset : offset + nbytes] = np.random.default_rng(seed).integers(0, 255, nbytes, dtype=np.uint8)

    def sum(self, offset=0, nbytes=None):
        return zlib.crc32(self.memory[offset : len(self.memory) if nbytes is None else offset + nbytes])

    def retire(self):
        self.registry.retire(self.slot, self.generation)

    def wait_quiet(self, timeout_s):
        return self.registry.wait_quiet(self.slot, self.generation, timeout_s)

    def lost(self, wait_s=0.0):
        until = time.monotonic() + wait_s
        while self.link.alive and time.monotonic() < until:
            time.sleep(0.005)
        return [self.link.alive, self.link.lost]

    def lose(self):
        self.link.lose("a test said so")

    def leave(self):
        self.link.close(1.0)

    def close(self):
        self.network.close(2.0)

    def threads(self, count, rounds, nbytes):
        """``count`` threads that each write and read their own part, over one link; how many rounds went wrong."""
        wrong = []

        def work(number):
            at = number * 2 * nbytes
            for turn in range(rounds):
                rng = np.random.default_rng([number, turn])
                self.memory[at : at + nbytes] = rng.integers(0, 255, nbytes, dtype=np.uint8)
                write = self.prepare("write", [[at, at, nbytes]])
                read = self.prepare("read", [[at + nbytes, at, nbytes]])
                for each in (write, read):
                    each.post(None, 20.0)
                    if each.wait(20.0) != 2:
                        wrong.append([number, turn])
                if not np.array_equal(self.memory[at : at + nbytes], self.memory[at + nbytes : at + 2 * nbytes]):
                    wrong.append([number, turn])

        running = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for each in running:
            each.start()
        for each in running:
            each.join()
        return wrong

    def cycles(self, count, peer):
        for number in range(count):
            link = self.network.connect(bytes.fromhex(peer["address"]), SECRET, 10.0)
            if number % 2 == 0:
                link.notify(b"cycle", 5.0)
            link.close(5.0)

    def usage(self):
        gc.collect()
        status = Path("/proc/self/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return {
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "rss_kib": rss,
            "cpu_s": time.process_time(),
        }


def main():
    node = Node(**json.loads(sys.argv[1]))
    print(json.dumps({"ok": node.hello()}), flush=True)
    for line in sys.stdin:
        command, arguments, keywords = json.loads(line)
        try:
            answer = {"ok": getattr(node, command)(*arguments, **keywords)}
        except Exception as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(answer), flush=True)
    node.close()


if __name__ == "__main__":
    main()
