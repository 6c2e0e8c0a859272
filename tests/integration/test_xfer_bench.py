"""``penstock xfer-bench`` between real processes."""

import json
import re
import subprocess
import sys

import pytest

from penstock.cli import xfer_ends
from penstock.cli.main import main
from penstock.cli.xfer_bench import moves_of
from penstock.errors import ConfigError

QUICK = ["xfer-bench", "--seconds", "0.01", "--json"]
TIMEOUT_S = 60


@pytest.fixture
def run(capfd):
    """Runs it: (exit code, the document)."""

    def run(*arguments):
        code = main([*QUICK, *arguments])
        return code, json.loads(capfd.readouterr().out)

    return run


@pytest.fixture
def listener():
    """The other end, as on another host: its address and its token."""
    command = [sys.executable, "-m", "penstock", "xfer-bench", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            found = re.search(r"--connect (\S+) --token (\S+)", child.stdout.readline())
            yield found[1], found[2]
        finally:
            child.kill()


def test_every_move_is_a_line_with_what_moved_it(run):
    code, document = run("--plane", "shm", "--sizes", "8,4KiB", "--counts", "1,3")
    assert code == 0
    *moves, messages = document["lines"]
    found = {(line["operation"], line["size_bytes"], line["descriptors"]) for line in moves}
    assert found == {(kind, size, count) for kind in ("WRITE", "READ") for size in (8, 4096) for count in (1, 3)}
    assert {line["transport"] for line in moves} == {"shm"}
    assert all(line["posts"] >= 5 and 0 < line["p50_us"] <= line["p99_us"] for line in document["lines"])
    assert (messages["operation"], messages["transport"]) == ("NOTIFY", "shm")


def test_memory_of_the_users_own_goes_another_way(run):
    code, document = run("--plane", "shm", "--sizes", "64KiB", "--counts", "2", "--operation", "read", "--user-memory")
    assert code == 0
    assert document["lines"][0]["transport"] != "shm"


def test_a_plane_that_is_not_there_is_named(run):
    code, document = run("--plane", "both", "--sizes", "4KiB", "--counts", "1")
    assert code == 0
    planes = {line["plane"] for line in document["lines"]}
    assert planes | set(document["unavailable"]) == {"shm", "network"}
    assert all(line["transport"].startswith("ucx:") for line in document["lines"] if line["plane"] == "network")


def test_wrong_bytes_are_an_error_and_no_figure(run, monkeypatch):
    monkeypatch.setattr(xfer_ends.Initiator, "_remote", lambda self, what, move: -1)
    code, document = run("--plane", "shm", "--sizes", "8", "--counts", "1")
    assert code == 1
    assert "wrong bytes" in document["error"]["message"]


def test_the_table_has_the_same_lines(capfd):
    assert main(["xfer-bench", "--seconds", "0.01", "--plane", "shm", "--sizes", "8", "--counts", "1"]) == 0
    header, *lines = capfd.readouterr().out.splitlines()
    assert header.split()[:3] == ["plane", "transport", "operation"]
    assert [line.split()[2] for line in lines] == ["write", "read", "notify"]


def test_two_hosts_meet_over_a_socket(run, listener):
    place, token = listener
    for _ in range(2):  # it serves one after another
        code, document = run("--connect", place, "--token", token, "--sizes", "8", "--counts", "1")
        assert code == 0
        assert [line["operation"] for line in document["lines"]] == ["WRITE", "READ", "NOTIFY"]


def test_without_the_token_nothing_is_served(run, listener):
    place, token = listener
    code, document = run("--connect", place, "--token", "guessed", "--sizes", "8", "--counts", "1")
    assert code == 1
    assert "token" in document["error"]["message"]
    assert run("--connect", place, "--token", token, "--sizes", "8", "--counts", "1")[0] == 0


def test_nobody_there_is_an_error(run):
    code, document = run("--connect", "127.0.0.1:1", "--token", "any")
    assert code == 1
    assert "nobody listens" in document["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--plane", "carrier-pigeon"),
        ("--operation", "swap"),
        ("--counts", "0"),
        ("--sizes", "many"),
        ("--connect", "x"),
    ],
)
def test_what_makes_no_sense_is_refused(run, arguments):
    code, document = run(*arguments)
    assert code == 1
    assert document["error"]["type"] == "ConfigError"


def test_moves_beyond_the_bound_are_left_out():
    moves = moves_of("1KiB,1MiB", "1,4", "write", 1 << 20)
    assert [(move.size_bytes, move.descriptors) for move in moves] == [(1024, 1), (1 << 20, 1), (1024, 4)]
    assert all(move.operation == "WRITE" for move in moves)
    with pytest.raises(ConfigError, match="--max-bytes"):
        moves_of("2MiB", "1", "both", 1 << 20)
