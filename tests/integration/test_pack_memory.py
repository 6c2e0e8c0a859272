"""Packing takes the same memory for any number of files: nothing is kept for each of them."""

from __future__ import annotations

import subprocess
import sys

PACK_NOTHING = """
import io, resource, sys
from penstock.packing.run import Options, run

class Source:  # a million empty promises: files of one byte that exist nowhere
    url, readers = "nowhere", 2
    def __init__(self, count): self.count = count
    def entries(self):
        return ((b"class %d/file %d.jpg" % (index % 100, index * 7919 % self.count), 1) for index in range(self.count))
    def read_files(self, files, segment): pass
    def close(self): pass

class Sink:
    scratch = None
    def open(self): pass
    def locate(self, key): return "/nowhere/" + key
    def result_key(self, key): return key
    def write(self, shard, data): pass
    def end_shard(self): pass
    def open_manifest(self): return open("/dev/null", "wb")
    def publish(self, labels): pass
    def abort(self): pass

count = int(sys.argv[1])
packed = run(Source(count), Sink(), Options(64 << 20, "auto", 1), None)
assert packed.samples == count, packed
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kib(files: int) -> int:
    command = [sys.executable, "-W", "ignore", "-c", PACK_NOTHING, str(files)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_three_times_the_files_take_no_more_memory():
    few, many = peak_kib(70_000), peak_kib(210_000)
    assert many - few < 5 << 10, "anything kept for each of 140,000 more files takes 9 MiB or more"
