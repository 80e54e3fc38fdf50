"""The page in Debian's chromium, headless: what a reader of the file sees."""

import shutil

import pytest

from optkit.report.page import render_page
from tests.report.runs import HOSTILE, chain, hostile, many, sensitivity, sweep, write_run

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    plain = write_run(root / "run", chain())
    sensitivity().save(plain / "sensitivity.json")
    runs = {
        "plain": plain,
        "hostile": write_run(root / "hostile", hostile(chain())),
        "many": write_run(root / "many", many()),
        "sweep": write_run(root / "sweep", sweep()),
    }
    for name, folder in runs.items():
        (root / f"{name}.html").write_text(render_page([folder]), encoding="utf-8")
    return root


@pytest.fixture
def opened(browser, files):
    """Opens a page from disk, and notes what it says to the console and asks the network for."""
    contexts = []

    def open_(name, *, width=1280, scheme="light", scripts=True):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(f"file://{files / name}.html")
        if scripts:
            page.wait_for_selector("[data-drawn]", state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()


def _draw_all(page):
    for n in range(page.locator(".chart").count()):
        page.locator(".chart").nth(n).scroll_into_view_if_needed()
        # not wait_for_function: where it has to wait it evaluates a string, which the page forbids
        page.locator(".chart").nth(n).and_(page.locator("[data-drawn]")).wait_for(state="attached")


@pytest.mark.slow
def test_it_opens_from_disk_draws_all_charts_and_asks_for_nothing(opened, files):
    page = opened("plain")
    _draw_all(page)
    assert page.locator(".chart svg").count() == page.locator(".chart").count() == 8
    assert page.said == []
    assert page.asked == [f"file://{files}/plain.html"]
    assert page.locator(".chart svg path").count() > 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_sweep_has_its_curve_in_light_and_dark(opened, scheme):
    page = opened("sweep", width=360, scheme=scheme)
    _draw_all(page)
    assert page.said == []
    assert page.locator("#latency .chart svg .mark-line path").count() == 7
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    lightness = _lightness(page, "#latency .chart svg .role-axis-label text", "fill")
    assert lightness > 140 if scheme == "dark" else lightness < 120


def test_a_point_has_a_tooltip(opened):
    page = opened("plain")
    _draw_all(page)
    page.locator("#trade-off-0-0 .mark-symbol.role-mark path").last.hover()
    tip = page.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    assert "variant" in tip.inner_text()
    assert "speedup" in tip.inner_text()


def test_names_do_not_become_code(opened):
    page = opened("hostile")
    _draw_all(page)
    page.locator("#trade-off-0-0 .mark-symbol.role-mark path").last.hover()
    page.locator("#vg-tooltip-element").wait_for(state="visible")
    assert page.evaluate("window.pwned") is None
    assert page.said == []
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator("#verdict").inner_text() + page.locator("h1").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_one_way_only(opened, scheme):
    page = opened("plain", width=360, scheme=scheme)
    _draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    # whatever is wider scrolls in a frame of its own, which the keyboard reaches
    for frame in page.locator(".scroll").all():
        assert frame.get_attribute("tabindex") == "0"


def _lightness(page, selector, what):
    color = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{what}")
    parts = [float(p) for p in color[color.index("(") + 1 : -1].split(",")[:3]]
    return sum(parts) / 3


def test_dark_and_light_follow_the_reader_charts_too(opened):
    page = opened("plain", scheme="dark")
    assert _lightness(page, "body", "backgroundColor") < 60
    assert _lightness(page, "body", "color") > 180
    labels = ".chart svg .role-axis-label text"
    assert _lightness(page, labels, "fill") > 140
    page.emulate_media(color_scheme="light")
    for _ in range(100):
        # while a chart is drawn anew it has no label for a moment
        fill = page.evaluate(f"(e => e ? getComputedStyle(e).fill : '')(document.querySelector('{labels}'))")
        if fill.startswith("rgb(") and int(fill[4:].split(",")[0]) < 120:
            break
        page.wait_for_timeout(100)
    assert _lightness(page, "body", "backgroundColor") > 200
    assert _lightness(page, labels, "fill") < 120


def test_the_keyboard_reaches_everything(opened):
    page = opened("plain")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    closed = page.locator("#trade-off details:not([open]) > summary").first
    closed.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator("#trade-off details[open] table").first.is_visible()


def test_without_javascript_the_tables_are_there(opened):
    page = opened("plain", scripts=False)
    assert page.locator("noscript").count() == 1
    assert "quantize" in page.locator("#techniques table").first.inner_text()
    assert page.locator("#figures table tbody tr").count() == 7


@pytest.mark.slow
def test_two_hundred_variants_do_not_keep_a_reader_waiting(opened, files):
    assert (files / "many.html").stat().st_size < 6e6
    page = opened("many")
    drawn = page.locator("[data-drawn]").count()
    assert 0 < drawn < page.locator(".chart").count()
    _draw_all(page)
    assert page.said == []
