"""What the pages say is what the code does."""

import asyncio
import hashlib
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import penstock
from penstock.cli.main import main
from penstock.config import VARIABLES
from penstock.dataset.manifest import Manifest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_environment_page_lists_every_variable_and_no_other():
    expected = [
        f"| {', '.join(f'`{name}`' for name in variable.names)} | {variable.default} | {variable.meaning} |"
        for variable in VARIABLES.values()
    ]
    lines = (ROOT / "docs" / "environment.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| `")] == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [
        target for target in targets if not target.startswith("https://") and not (page.parent / target).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


def test_commands_in_the_readme_exist(capsys):
    named = set(re.findall(r"^penstock ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert len(named) >= 4
    for command in named:
        assert main([command, "--help"]) == 0
    assert "Usage: penstock" in capsys.readouterr().out


def test_the_version_stands_in_two_places_and_is_one():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == penstock.__version__


def test_the_manifest_on_the_formats_page_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path))
    (text,) = [block for block in code_blocks(ROOT / "docs" / "file_formats.md", "") if block.startswith("schema")]
    path = tmp_path / "manifest.tsv"
    path.write_text(text)
    manifest = Manifest.open(path, expected_hash=hashlib.sha256(text.encode()).hexdigest())
    assert (manifest.version, manifest.row_count, manifest.has_crcs) == (1, 2, True)
    assert manifest.label_id.tolist() == [0, 1]
    header_bytes, block = 512, 512
    first_end = manifest.offset[0] + manifest.length[0]
    assert manifest.offset[1] == -(-first_end // block) * block + header_bytes


def test_the_options_page_has_every_knob_and_tests_that_are_there():
    text = (ROOT / "docs" / "options.md").read_text().split("## Presets")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    assert {len(row) for row in rows} == {6}
    knobs = [knob for row in rows for knob in re.findall(r"`(\w+)`", row[0])]
    assert knobs == [field.name for field in fields(penstock.LoaderOptions)]
    for row in rows:
        proofs = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row[5])
        assert len(proofs) == row[5].count("`") / 2
        assert proofs, row[0]
        for file, test in proofs:
            assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), test


def test_the_options_page_says_the_defaults():
    text = (ROOT / "docs" / "options.md").read_text()
    plain = penstock.LoaderOptions().to_dict()
    expected = {**plain, "part_size": plain["part_size"] >> 20, "sampler_type": plain["sampler_type"]["kind"]}
    shown = re.findall(r"^\| `(\w+)` \| [`\"]*([^ `\":,|]+)", text, re.MULTILINE)
    assert len(shown) > 15
    for knob, default in shown:
        assert default == str(expected[knob]), knob


@pytest.mark.parametrize("page", ["options.md", "s3dlio.md"])
def test_the_snippets_of_pages_about_options_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for number in range(130):
        (tmp_path / "photos" / f"{number:03d}.jpg").write_bytes(b"12345")
    penstock.pack_dir("photos", out="photos-packed", label_mode="none")
    (snippet,) = code_blocks(ROOT / "docs" / page, "python")
    names = {}
    exec(compile(snippet.replace("file:///data", f"file://{tmp_path}"), page, "exec"), names)
    if page == "options.md":
        assert capsys.readouterr().out == "64 3\n"
        assert (names["same"].shuffle, names["debug"].timeout_seconds, names["debug"].batch_size) == (True, 10.0, 4)
    else:
        asyncio.run(names["train"]())
        assert capsys.readouterr().out == "64 samples, 320 bytes\n" * 2


def test_the_snippets_about_transforms_run(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(20):
            Image.effect_noise((40, 30 + number), 50).save(f"photos/{label}/{number:02}.png")
    penstock.pack_dir("photos", out="photos-packed")
    found: dict = {}
    for snippet in code_blocks(ROOT / "docs" / "transforms.md", "python"):
        exec(compile(snippet, "transforms.md", "exec"), found)
    assert (found["images"].shape, found["labels"].tolist().count(0) > 0) == ((8, 96, 96, 3), True)
    tokens, lengths = found["batch"]["tokens"], found["batch"]["length"]
    assert tokens.shape == (40, -(-lengths.max() // 8) * 8)
    assert ((tokens == -1).sum(axis=1) == tokens.shape[1] - lengths).all()
    found["loader"].close()


def test_the_snippets_of_the_readme_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 30), (number, 0, 0)).save(f"photos/{label}/{number}.png")
    snippets = code_blocks(ROOT / "README.md", "python")
    assert len(snippets) == 6
    for snippet in snippets:
        code_lines = [line for line in snippet.splitlines() if line.strip() and not line.startswith(("import", "from"))]
        assert len(code_lines) <= 6
        exec(compile(snippet, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("6 samples, ")
    epochs = [f"{epoch} torch.Size([6, 3, 224, 224]) torch.Size([6])" for epoch in range(3)]
    shared = "6 samples, each once, on all nodes together"
    assert printed[1:] == ["True", *epochs, shared, "[Notification(sender='prefill', message=b'page 0')]"]
