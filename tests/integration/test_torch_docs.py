"""The snippets of docs/torch.md, one after another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")
from PIL import Image

import penstock

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"


def test_the_snippets_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    for number in range(6):
        path = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number, 0, 0)).save(path)
    penstock.pack_dir("photos", out="photos-packed", label_mode="imagefolder")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, object] = {}
    for block in blocks:
        if "import lightning" not in block:  # test_torch_lightning.py has that
            exec(compile(block, "docs/torch.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [f"{epoch} torch.Size([6, 3, 224, 224])" for epoch in range(3)]
    assert [images.shape[0] for images, _ in names["batches"]] == [6]
    assert names["again"].epoch == 4
    for name in ("loader", "again"):
        names[name].close()
