"""The command line on real folders: results, errors, exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

import penstock
from penstock.cli import audit as audit_module
from penstock.cli.main import main

TIMEOUT_S = 60


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path):
    """Forty files in two classes, 1 to 40 KB."""
    folder = tmp_path / "files"
    for number in range(40):
        path = folder / ("cat" if number % 2 else "dog") / f"{number:02}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * (1000 * (number + 1)))
    return folder


@pytest.fixture
def packed(files, tmp_path, capsys):
    out = tmp_path / "packed"
    assert main(["pack", str(files), str(out), "--shard-mb", "1", "--json"]) == 0
    capsys.readouterr()
    return out


@pytest.fixture
def run(capsys):
    """Runs one command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def child(*arguments, **options):
    """The same in a process of its own."""
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **options)


def test_pack_tells_a_machine_what_it_made(files, tmp_path, run):
    code, out, err = run("pack", files, tmp_path / "out", "--json")
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert (result["samples"], result["shards"]) == (40, 1)
    assert result["labels_path"].endswith("labels.tsv")
    code, out, _ = run("resolve", f"{tmp_path}/out@refresh")
    assert (code, out) == (0, result["manifest_hash"] + "\n")


def test_pack_tells_a_person_how_to_pin_it(files, tmp_path, run):
    code, out, _ = run("pack", files, tmp_path / "out")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith("pinned"))
    assert lines["samples"] == "40 in 1 shard"
    (pinned,) = [line.split()[-1] for line in out.splitlines() if line.startswith("pinned link")]
    assert run("resolve", f"{tmp_path}/out@refresh")[1].strip() in pinned
    assert run("inspect", pinned)[0] == 0


def test_pack_takes_every_option(files, tmp_path, run):
    out = tmp_path / "out"
    code, text, _ = run(
        "pack", files, out, "--manifest-version", 0, "--label-mode", "none", "--shard-mb", "1", "--json"
    )
    assert (code, json.loads(text)["labels_path"]) == (0, None)
    assert (out / "_mx8" / "manifest.tsv").read_text().startswith("schema_version=0\n")
    (files / "stray.bin").write_bytes(b"x")
    code, _, err = run("pack", files, tmp_path / "other", "--require-labels")
    assert code == 1
    assert "stray.bin" in err


def test_resolve_tells_a_machine_more(packed, run):
    code, out, _ = run("resolve", f"{packed}@refresh", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["link"] == f"{packed}@sha256:{found['manifest_hash']}"
    assert (found["samples"], found["manifest_version"]) == (40, 1)


def test_resolve_takes_a_table_and_a_store(tmp_path, run):
    (tmp_path / "x.bin").write_bytes(b"x")
    table = tmp_path / "table.tsv"
    table.write_text(f"0\t{tmp_path}/x.bin\n")
    store = tmp_path / "other-store"
    code, out, _ = run("resolve", tmp_path, "--dev-manifest", table, "--store", store)
    assert code == 0
    assert (store / "by-hash" / out.strip()).is_file()


def test_inspect_shows_what_is_there(packed, run):
    code, out, _ = run("inspect", packed)
    assert code == 0
    assert "40 in 1 location" in out
    assert "every sample has one" in out
    assert "cat" in out
    assert "dog" in out
    code, out, _ = run("inspect", packed, "--json", "--samples", 2, "--labels", 1)
    found = json.loads(out)
    assert code == 0
    assert found["total_bytes"] == sum(1000 * (number + 1) for number in range(40))
    assert found["labels"] == [{"label_id": 0, "name": "cat", "samples": 20}]
    assert found["label_count"] == 2
    assert [example["sample_id"] for example in found["examples"]] == [0, 39]
    assert sum(part["samples"] for part in found["histogram"]) == 40


def test_verify_is_content_with_a_good_dataset(packed, run):
    code, out, _ = run("verify", packed)
    assert code == 0
    assert "read 40 of 40 samples" in out
    assert out.endswith("all good\n")


@pytest.fixture(params=[32 << 20, 5000], ids=["one buffer", "samples larger than the buffer"])
def buffer_bytes(request, monkeypatch):
    monkeypatch.setattr(audit_module, "_BUFFER_BYTES", request.param)


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def row(packed, sample_id):
    """Offset and length of a sample."""
    fields = (packed / "_mx8" / "manifest.tsv").read_text().splitlines()[sample_id + 1].split("\t")
    return int(fields[2]), int(fields[3])


@pytest.mark.usefixtures("buffer_bytes")
def test_verify_names_each_bad_sample(packed, run):
    shard = packed / "shards" / "shard-00000.tar"
    for sample_id in (3, 39):
        offset, length = row(packed, sample_id)
        flip(shard, offset + length - 1)
    code, out, _ = run("verify", packed, "--json")
    found = json.loads(out)
    assert code == 1
    assert [bad["sample_id"] for bad in found["bad"]] == [3, 39]
    assert all("crc32c" in bad["reason"] and bad["location"] == str(shard) for bad in found["bad"])
    assert (found["read_samples"], found["bad_samples"], found["gave_up"]) == (38, 2, False)
    code, out, _ = run("verify", packed, "--show", 1)
    assert code == 1
    assert "2 bad samples" in out
    assert "1 more" in out


@pytest.mark.usefixtures("buffer_bytes")
def test_verify_finds_a_truncated_shard(packed, run):
    shard = packed / "shards" / "shard-00000.tar"
    offset, length = row(packed, 37)
    os.truncate(shard, offset + length)
    code, out, _ = run("verify", packed, "--json")
    assert code == 1
    assert [bad["sample_id"] for bad in json.loads(out)["bad"]] == [38, 39]


def test_verify_gives_up_on_a_missing_shard(packed, run, monkeypatch):
    monkeypatch.setattr(audit_module, "MOST_BAD_SAMPLES", 7)
    (packed / "shards" / "shard-00000.tar").unlink()
    code, out, _ = run("verify", packed, "--json")
    found = json.loads(out)
    assert (code, found["bad_samples"], found["gave_up"]) == (1, 7, True)


def test_verify_says_what_it_could_not_check(files, tmp_path, run):
    out = tmp_path / "v0"
    run("pack", files, out, "--manifest-version", 0)
    code, text, _ = run("verify", out)
    assert code == 0
    assert "40 have no checksum" in text
    code, text, _ = run("verify", files)  # not packed: neither sizes nor checksums are known
    assert code == 0
    assert "read 40 of 40 samples" in text
    assert "40 have no checksum" in text


def test_verify_resume_compares_every_sample(packed, run):
    code, out, _ = run("verify-resume", packed, "--batch-size", "4", "--json")
    result = json.loads(out)
    assert code == 0 and result["good"]
    assert [check["stopped_after"] for check in result["checks"]] == [0, 1, 5, 9, 5]
    assert all(check["first_difference"] is None for check in result["checks"])
    assert "going on is exact" in run("verify-resume", packed, "--batch-size", "4")[1]


def forgetful(link, *, resume=None, **arguments):
    """A loader that begins anew instead of going on."""
    return penstock.load(link, **arguments)


def unstable(link, *, prefetch_batches=1, **arguments):
    """A loader whose order depends on what it must not."""
    return penstock.load(link, **{**arguments, "resume": None, "seed": prefetch_batches})


@pytest.mark.parametrize("loader", [forgetful, unstable])
def test_verify_resume_finds_a_loader_that_does_not_go_on(loader, packed, run):
    name = f"{loader.__module__}:{loader.__name__}"
    code, out, _ = run("verify-resume", packed, "--batch-size", "4", "--loader", name)
    assert code == 1
    assert " differs" in out and "NOT exact" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--batch-size", "5"), "even number"), (("--loader", "nowhere:nothing"), "give module:function")],
)
def test_verify_resume_says_what_it_needs(arguments, told, packed, run):
    code, _, err = run("verify-resume", packed, *arguments)
    assert code == 1 and told in err


def test_an_error_is_one_line_and_exit_code_1(tmp_path, run):
    code, out, err = run("inspect", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert err.startswith("penstock: error: ")
    assert err.count("\n") == 1
    assert "nowhere" in err


def test_an_error_is_json_for_a_machine(tmp_path, run):
    code, out, err = run("resolve", tmp_path / "nowhere", "--json")
    assert code == 1
    assert json.loads(out)["error"]["type"] == "ResolveError"
    assert err.startswith("penstock: error: ")


@pytest.mark.parametrize("arguments", [["--debug", "resolve", "@refresh"], ["resolve", "@refresh", "--debug"]])
def test_debug_gives_the_trace(arguments, run):
    code, _, err = run(*arguments)
    assert code == 1
    assert "Traceback" in err
    assert "LinkError" in err
    assert err.splitlines()[-1].startswith("penstock: error: ")


def test_what_nobody_expected_is_one_line_too(monkeypatch, run):
    def broken(*_, **__):
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("penstock.cli.resolve.resolve_link", broken)
    code, _, err = run("resolve", "x")
    assert code == 1
    assert err == "penstock: error: unexpected ZeroDivisionError: by design; run it again with --debug for the trace\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pack"], "penstock pack --help"),
        (["pack", "a", "b", "--nonsense"], "--nonsense"),
        (["pack", "a", "b", "--shard-mb", "many"], "--shard-mb"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, told, run):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_help_and_version(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("pack", "resolve", "inspect", "verify", "doctor"))
    assert run("--version")[:2] == (0, penstock.__version__ + "\n")
    assert run()[0] == 2


def test_a_wrong_log_level_is_an_error(monkeypatch, run):
    monkeypatch.setenv("PENSTOCK_LOG", "loud")
    code, _, err = run("--version")
    assert code == 1
    assert "PENSTOCK_LOG" in err


def test_it_is_a_module_and_imports_no_torch(packed):
    code = (
        "import sys; from penstock.cli.main import main\n"
        f"assert main(['verify', {str(packed)!r}]) == 0\n"
        "loaded = {'torch', 'PIL', 'obstore'} & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert child("--version").stdout == penstock.__version__ + "\n"


@pytest.mark.parametrize("arguments", [["--version"], ["top", "--once"]])
def test_a_command_imports_only_what_it_needs(arguments):
    code = (
        "import sys; from penstock.cli.main import main\n"
        f"assert main({arguments}) == 0\n"
        "loaded = {'pyarrow', 'numpy', 'penstock.loader', 'penstock.transfer', 'grpc'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_had_enough_is_no_error(packed):
    command = [sys.executable, "-m", "penstock", "inspect", str(packed)]
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False)
    assert done.stderr == ""


def test_a_terminal_gets_a_bar_and_stdout_stays_clean(files, tmp_path):
    terminal, terminal_end = pty.openpty()
    command = [sys.executable, "-m", "penstock", "pack", str(files), str(tmp_path / "out"), "--json"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=terminal_end, timeout=TIMEOUT_S, check=True, env=environment
    )
    os.close(terminal_end)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert json.loads(done.stdout)["samples"] == 40
    assert "pack" in shown
    assert "\x1b[" in shown


def test_ctrl_c_ends_cleanly_with_130(files, tmp_path):
    """Another process seems to be indexing, so this one waits for it; that's when Ctrl-C comes."""
    from penstock.dataset.links import intent_key

    lock = tmp_path / "store" / "locks" / f"{intent_key(str(files))}.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(f"unix_time_ms={int(time.time() * 1000)}\npid={os.getpid()}\nnode_id=test\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "resolve", str(files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PENSTOCK_LOG": "info"},
    )
    assert process.stderr is not None
    assert "event=" in process.stderr.readline()  # it says so before it waits
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "penstock: error: interrupted"
    assert "Traceback" not in err
