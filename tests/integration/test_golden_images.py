"""Every kind of JPEG file decodes to the pixels that it always did; tests/golden/make.py says how they were made."""

from __future__ import annotations

import numpy as np
import pytest

from penstock import _core

Image = pytest.importorskip("PIL.Image")

from tests.golden.make import FOLDER, KINDS, pixels_of  # noqa: E402

pytestmark = pytest.mark.skipif(not _core.HAS_JPEG, reason="the core was built without libjpeg-turbo")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("crop", [False, True])
def test_golden_images(name, crop):
    file = (FOLDER / f"{name}.jpg").read_bytes()
    both = np.asarray(Image.open(FOLDER / f"{name}.png")).transpose(2, 0, 1)
    expected = both[:, 24:] if crop else both[:, :24]
    difference = np.abs(pixels_of(file, crop=crop).astype(int) - expected)
    assert difference.max() == 0, f"{np.count_nonzero(difference)} samples differ, by up to {difference.max()}"


def test_nothing_golden_is_left_over():
    assert {path.stem for path in FOLDER.glob("*.jpg")} == {path.stem for path in FOLDER.glob("*.png")} == set(KINDS)
