"""The page in a real browser: true numbers and bars, live, through a lost connection, for everybody who looks."""

import re

import pytest
from tests import screenshot

import chromium
from job_on_show import HASH, MIB, JobOnShow
from penstock.coordinator.state import Job, Terms

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())

WAIT_MS = 20_000


@pytest.fixture(scope="module")
def launched():
    with chromium.browser() as launched:
        yield launched


@pytest.fixture
def show():
    with JobOnShow(Job(HASH, 1000, 100, world_size=2)) as show:
        yield show


class Page:
    """A tab that shows a job; it complains of every error that the browser has with it."""

    def __init__(self, launched, show, **settings):
        self.complaints, self.asked = [], []
        self.context = launched.new_context(**{"viewport": {"width": 1240, "height": 900}, **settings})
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(WAIT_MS)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("console", lambda told: told.type == "error" and self.complaints.append(told.text))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(show.url)
        self.until_connected("live")

    def until_connected(self, state):
        self.tab.wait_for_selector(f"#connection[data-state={state}]")

    def text(self, selector):
        return self.tab.inner_text(selector)

    def until_text(self, selector, text):
        from playwright.sync_api import expect

        expect(self.tab.locator(selector)).to_have_text(re.compile(text), timeout=WAIT_MS)

    def box(self, selector):
        """Of a path of a bar: x, y, width, height in the bar's own units, cells across and thousandths up."""
        return self.tab.eval_on_selector(
            selector, "path => { const b = path.getBBox(); return [b.x, b.y, b.width, b.height] }"
        )

    def close(self):
        self.context.close()


@pytest.fixture
def look(launched):
    pages = []

    def opened(show, **settings):
        pages.append(Page(launched, show, **settings))
        return pages[-1]

    yield opened
    for page in pages:
        page.close()


def test_numbers_and_bars_are_the_jobs(show, look):
    show.register("a", "b", cap_bytes=512 * MIB)
    (first,), (second,) = show.lease("a"), show.lease("b")
    show.run(show.watch.read())
    show.advance(10)
    show.report(first, 40, 1_000_000)
    show.beat("a", 128 * MIB, 256 * MIB)
    show.run(show.watch.read())
    page = look(show)
    page.until_text("#percent", r"^4\.0 %$")
    assert page.text("#done") == "40 of 1,000 samples"
    assert page.text("#left") == "4 min 00 s", "960 samples at 4 a second"
    assert page.text("#rate") == "4.0 samples/s" and page.text("#rate-note") == "4.0 MB/s of payload"
    assert page.text("#leases") == "2" and page.text("#leases-note") == "2 granted"
    assert page.text("#memory") == "128 MiB"
    # 1000 cells, one sample each; what is done from 0 on, then a's rest, then b's.
    assert page.box("#bar path.done") == [0, 0, 40, 1000]
    assert page.box("#bar path.rank0") == [40, 0, 60, 1000]
    assert page.box("#bar path.rank1") == [100, 0, 100, 1000]
    rows = page.tab.eval_on_selector_all(
        "#nodes tr", "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent).filter(Boolean))"
    )
    assert rows == [
        ["0", "a", "live", "4.0", "4.0", "128 MiB of 512 MiB", "4", "40", "now"],
        ["1", "b", "silent", "0", "0.0", "0 B of 512 MiB", "4", "0", "10 s ago"],
    ]
    assert page.box("#nodes tr:nth-child(1) .lane path:nth-child(2)") == [0, 0, 40, 1]
    assert page.box("#nodes tr:nth-child(2) .lane path.rest") == [100, 0, 100, 1]
    assert page.tab.title() == "4.0 % · Running · Penstock"
    assert second.start == 100 and not page.complaints


def test_it_moves_without_being_asked(show, look):
    page = look(show)
    page.until_text("#notice", "Waiting for 2 more nodes of 2")
    show.register("a", "b")
    page.until_text("#phase", "Running")
    (lease,) = show.lease("a")
    page.until_text("#leases", "^1$")
    for cursor in (25, 50, 75):
        show.report(lease, cursor)
        page.until_text("#done", f"^{cursor} of 1,000 samples$")
        assert page.box("#bar path.done") == [0, 0, cursor, 1000]
    row = page.tab.query_selector("#nodes tr")
    show.advance(11)
    show.tick()
    page.until_text("#events li:nth-child(1)", "rank_released.*5 blocks of b go to the others")
    page.until_text("#events", r"lease-0 of a ended at 75, before 100")
    assert row.is_visible(), "rows stay the same ones, so what is selected in them stays so"
    assert len([url for url in page.asked if url.endswith("/events")]) == 1, "one stream told all of it"


def test_a_lost_connection_is_told_and_comes_back(show, look):
    show.register("a", "b")
    page = look(show)
    show.stop()
    page.until_connected("lost")
    assert re.fullmatch(r"connection lost; last heard \d+ s ago", page.text("#connection-text"))
    (lease,) = show.lease("a")
    show.report(lease, 100)
    show.serve()
    page.until_connected("live")
    page.until_text("#percent", r"^10\.0 %$")


def test_a_drained_job_a_failed_one_and_one_that_somebody_else_leads(look):
    with JobOnShow(Job(HASH, 100, 100, world_size=1)) as show:
        show.register("a")
        page = look(show)
        (lease,) = show.lease("a")
        show.report(lease, 100)
        page.until_text("#phase", "Drained")
        assert page.text("#percent") == "100 %" and page.text("#left") == "0 s"
        show.seat.state = None
        page.until_text("#notice", r"doesn't lead the job; 10\.0\.0\.7:50051 does")
        assert not page.tab.is_visible("#job")
    with JobOnShow(Job(HASH, 100, world_size=2), Terms(barrier_timeout_s=5)) as show:
        show.register("a")
        show.advance(6)
        show.tick()
        page = look(show)
        page.until_text("#notice", r"only 1 of 2 nodes registered within 5 s: a; see why")


def test_what_nodes_call_themselves_is_text(look):
    name = "<img src=x onerror=alert(1)>"
    with JobOnShow(Job(HASH, 1000, 100, world_size=1)) as show:
        show.register(name)
        show.lease(name)
        page = look(show)
        page.until_text("#nodes .id", re.escape(name))
        page.until_text("#events", re.escape(name))
        assert page.tab.locator("img").count() == 0 and not page.complaints


def test_nothing_is_asked_of_anybody_else_and_nothing_else_may_run(show, look):
    page = look(show)
    assert {url.split("?")[0] for url in page.asked if not url.startswith("data:")} == {show.url, f"{show.url}events"}
    page.tab.evaluate(
        "() => { const other = document.createElement('script'); other.textContent = 'window.ran = 1'; "
        "document.body.append(other) }"
    )
    assert page.tab.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


def test_with_a_token_the_browsers_login_is_enough(look):
    with JobOnShow(token="a long enough secret") as show:
        page = look(show, http_credentials={"username": "me", "password": "a long enough secret"})
        page.until_text("#phase", "Gathering")


CONTRAST = """() => {
  const luminance = ([r, g, b]) => { // WCAG 2, relative luminance
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const found = parts(getComputedStyle(each).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
  };
  const poor = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    const [a, b] = [parts(getComputedStyle(element).color), ground(element)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5) poor.push(`${texts.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return [seen, poor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(scheme, look):
    with JobOnShow(Job(HASH, 1000, 100, world_size=3)) as show:
        show.register("a", "b", "c")
        show.lease("a"), show.lease("b")
        show.advance(5)
        show.beat("a"), show.beat("b")  # c is silent
        show.advance(6)
        show.beat("a")
        show.tick()
        page = look(show, color_scheme=scheme)
        page.until_text("#events", "rank_released")
        seen, poor = page.tab.evaluate(CONTRAST)
        assert seen > 60 and not poor
        ground = page.tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (ground == "rgb(16, 21, 24)") == (scheme == "dark")
        page.until_text("#nodes", "gone")


def test_it_can_be_used_without_a_mouse_and_without_eyes(show, look):
    show.register("a", "b")
    (lease,) = show.lease("a")
    show.report(lease, 40)
    page = look(show)
    page.until_text("#done", "^40 of")
    page.tab.keyboard.press("Tab")
    assert page.tab.evaluate("document.activeElement.id") == "bar"
    for key, told in (
        ("ArrowRight", "Samples 0 to 0: 1 done"),
        ("PageUp", "Samples 50 to 50: 1 leased by a"),
        ("End", "Samples 999 to 999: 1 queued"),
        ("ArrowRight", "Samples 999 to 999: 1 queued"),
        ("Home", "Samples 0 to 0: 1 done"),
    ):
        page.tab.keyboard.press(key)
        page.until_text("#stretch", f"^{told}$")
        assert page.tab.get_attribute("#bar", "aria-valuetext") == told
    unnamed = page.tab.evaluate(
        "() => [...document.querySelectorAll('[role=img],[role=slider],[role=region]')]"
        ".filter((e) => !e.getAttribute('aria-label') && !document.getElementById(e.getAttribute('aria-labelledby')))"
        ".map((e) => e.outerHTML)"
    )
    assert not unnamed
    lane = page.tab.get_attribute("#nodes tr:nth-child(1) .lane svg", "aria-label")
    assert lane == "1 lease: 0 to 100, at 40"
    headers = page.tab.eval_on_selector_all("th", "all => all.map((e) => [e.scope, e.textContent.trim() !== ''])")
    assert headers and all(header == ["col", True] for header in headers)
    assert page.tab.get_attribute("html", "lang") == "en"


def test_it_fits_a_narrow_window(show, look):
    show.register("a", "b")
    show.lease("a")
    page = look(show, viewport={"width": 390, "height": 800})
    page.until_text("#nodes", "live")
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_ten_thousand_nodes_and_a_billion_samples(look):
    count = 10_000
    with JobOnShow(Job(HASH, 10**9, world_size=count, shuffle=True)) as show:
        show.register(*(f"node-{number:05}" for number in range(count)))
        for number in range(0, count, 20):
            show.lease(f"node-{number:05}")
        page = look(show)
        page.until_text("#live", r"^10,000 of 10,000$")
        page.until_text("#nodes-note", r"^200 of 10,000: .* bars of 200 of 500 leases")
        assert page.tab.locator("#nodes tr").count() == 200
        assert page.box("#bar path.rank4")[2] > 500, "all over the samples, as they are shuffled"
        assert not page.complaints


def test_a_picture_for_the_docs(launched, tmp_path):
    with screenshot.a_job_with_a_past() as show:
        screenshot.play(show)
        screenshot.shoot(show, launched, tmp_path / "coordinator.png")
    size = (tmp_path / "coordinator.png").stat().st_size
    assert size > screenshot.PICTURE.stat().st_size / 2 > 50_000
