"""Makes docs/img/coordinator.png anew: ``python -m tests.screenshot``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from chromium import browser
from job_on_show import HASH, JobOnShow
from penstock.coordinator.state import Job, Terms

PICTURE = Path(__file__).parent.parent / "docs" / "img" / "coordinator.png"
SPEEDS = {"gpu-a1": 3100, "gpu-a2": 2900, "gpu-b1": 3000, "gpu-b2": 1400}


def a_job_with_a_past() -> JobOnShow:
    """Four nodes at work for two minutes; one of them was killed a while ago. Use it as a context, then ``play``."""
    job = Job(HASH, 1_600_000, 16384, world_size=len(SPEEDS))
    return JobOnShow(job, Terms(lease_ttl_s=10))


def play(show: JobOnShow) -> None:
    """Its past."""
    show.register(*SPEEDS)
    for _ in range(44):
        show.work(SPEEDS, 2.0)
    left = {name: speed for name, speed in SPEEDS.items() if name != "gpu-b2"}
    for _ in range(8):
        show.tick()
        show.work(left, 2.0)


def shoot(show: JobOnShow, launched: Any, path: Path) -> None:
    """A picture of the page."""
    page = launched.new_page(viewport={"width": 1240, "height": 800}, device_scale_factor=1.5, color_scheme="light")
    page.goto(show.url)
    page.wait_for_selector("#connection[data-state=live]")
    page.wait_for_selector("#nodes tr")
    page.screenshot(path=path)
    page.close()


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    with a_job_with_a_past() as show, browser() as launched:
        play(show)
        shoot(show, launched, PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")
