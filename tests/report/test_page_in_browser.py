"""The page of `cnnbench report`, opened and used in Chromium without a window."""

import os
import re
import shutil

import pytest

from cnnbench.cli.main import main
from cnnbench.report.page.charts import COLORS, load_altair
from page_runs import KILLED, UNSTEADY, energy_kpis, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here: script/setup.sh test installs it")
expect = playwright.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.skipif(load_altair() is None, reason="no Altair here: script/setup.sh report installs it"),
]
HOSTILE = "</script><img src=x onerror=document.title='caught'><!--"
POINTS = "#chart-throughput-latency .mark-symbol.role-mark path"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page of four runs, one of them invalid and one with HTML in its parameters."""
    logs = tmp_path_factory.mktemp("browser")
    write_run(logs, engine="onnxruntime", started="2025-01-01T00:00:00Z", rate=100, instances=1)
    write_run(logs, engine="onnxruntime", started="2025-01-01T00:00:01Z", rate=190, criteria=(UNSTEADY,))
    energy = energy_kpis(300, 120)
    write_run(logs, engine="openvino", started="2025-01-01T00:00:02Z", kpis=energy, batch=8, CUSTOMER_ENV=HOSTILE)
    write_run(logs, engine=HOSTILE, started="2025-01-01T00:00:03Z", criteria=(KILLED,))
    write_run(logs, engine="openvino", started="2025-01-01T00:00:04Z", trace="itex-int8-vnni.log")
    output = logs / "page.html"
    assert main(["report", "-o", str(output), *map(str, logs.glob("logs-*"))]) == 0
    return output


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium has none for root
        browser = started.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page_file):
    """Open the page, with all charts drawn; at the end, it must have complained of nothing and asked for nothing."""
    contexts, complaints, asked = [], [], []

    def open_page(**how):
        context = browser.new_context(**{"viewport": WIDE, **how})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        if how.get("java_script_enabled", True):
            page.evaluate("cnnbench.drawAll()")
            expect(page.locator(".chart:not(:has(svg))")).to_have_count(0)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in asked if url != page_file.as_uri()} == set()


def color_of(page, selector, what="backgroundColor"):
    red, green, blue = page.eval_on_selector(selector, f"one => getComputedStyle(one).{what}.match(/\\d+/g)")[:3]
    return f"#{int(red):02x}{int(green):02x}{int(blue):02x}"


def test_all_charts_are_drawn_and_no_text_is_taken_for_html(opened):
    page = opened()
    assert page.locator(".chart svg").count() >= 6
    assert page.title() == "cnnbench report"
    assert page.locator("main img").count() == 0
    assert page.get_by_text(HOSTILE).count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_filters_choose_rows_and_the_runs_of_charts(opened):
    page = opened()
    rows, shown = page.locator("#runs tbody tr:visible"), page.locator("#shown")
    points = page.locator(POINTS)
    assert (rows.count(), points.count()) == (5, 4)
    page.fill("#filter", "openvino resnet18")
    assert (rows.count(), shown.text_content()) == (2, "2 of 5 runs")
    expect(points).to_have_count(2)
    page.fill("#filter", "")
    page.uncheck("input[value=valid]")
    page.uncheck("input[value=invalid]")
    assert (rows.count(), shown.text_content()) == (1, "1 of 5 runs")
    page.evaluate("location.hash = '#run-1'")  # a link to a run that is hidden shows it
    expect(rows).to_have_count(5)


def test_hovering_tells_the_values_of_a_run(opened):
    page = opened()
    page.locator(POINTS).first.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    text = tip.text_content()
    assert re.search(r"latency \(ms\)\s*10", text)
    assert re.search(r"img/s\s*(100|190|300)", text)
    assert "verdict" in text
    title = page.locator('#runs [data-of="2"]').first.get_attribute("title")
    assert "spread: 22 %, needed at most 10 %" in title


def test_light_and_dark_follow_the_system_until_the_reader_chooses(opened):
    for theme, scheme in enumerate(("light", "dark")):
        page = opened(color_scheme=scheme)
        assert color_of(page, "body") == COLORS["paper"][theme]
        label = "#chart-throughput-latency .role-axis-title text"
        assert color_of(page, label, "fill") == COLORS["ink"][theme]
        other = ("dark", "light")[theme]
        page.select_option("#theme", other)
        assert color_of(page, "body") == COLORS["paper"][1 - theme]
        assert color_of(page, label, "fill") == COLORS["ink"][1 - theme]
        page.emulate_media(media="print")
        assert color_of(page, label, "fill") == COLORS["ink"][0]
        page.emulate_media(media="screen")
        page.select_option("#theme", "")
        assert color_of(page, "body") == COLORS["paper"][theme]


def test_it_prints_with_all_reasons_and_without_controls(opened, tmp_path):
    page = opened()
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.reason:not([open])").count() == 0
    assert page.locator(".filters").is_visible() is False
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.reason[open]").count() == 0


def test_it_fits_a_phone(opened):
    page = opened(viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    box = page.locator("#run-2 .why").bounding_box()
    assert box["x"] + box["width"] <= PHONE["width"]
    assert page.locator("#run-2").get_attribute("role") == "row"


def test_the_keyboard_reaches_every_control_and_a_reader_has_tables(opened):
    page = opened()
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(one => one.id || one.value || one.tagName)(document.activeElement)"))
    assert {"theme", "filter", "valid", "unstable", "invalid", "SUMMARY", "A"} <= reached
    charts = page.locator(".chart")
    assert all("table below" in chart.get_attribute("aria-label") for chart in charts.all())
    assert page.locator("figure").count() == page.locator("figure details table caption").count() == charts.count()
    assert page.locator("th:not([scope])").count() == 0
    first = page.locator("figure details summary").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("figure details table").first.is_visible()


def test_without_scripts_all_numbers_are_there(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("#runs tbody tr:visible").count() == 5
    assert page.locator(".filters").is_visible() is False
    assert page.get_by_text("Without JavaScript there are no charts").is_visible()


def test_a_step_in_a_history_tells_what_changed_there(browser, tmp_path):
    for day in range(24):
        after = day >= 12
        facts = {"host name": "one", "microcode": "0x2" if after else "0x1"}
        started = f"2025-01-{day + 1:02}T02:00:00Z"
        write_run(tmp_path, started=started, rate=(90 if after else 100) + day % 3, raw=False, facts=facts)
    output = tmp_path / "page.html"
    assert main(["report", "-o", str(output), str(tmp_path)]) == 0
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.goto(output.as_uri())
    page.evaluate("cnnbench.drawAll()")
    chart = page.locator("#chart-history-1")
    assert chart.locator(".mark-symbol.role-mark path").count() == 24
    ratio = chart.locator(".mark-text.role-mark text")
    assert ratio.all_text_contents() == ["×0.901"]  # noqa: RUF001
    ratio.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert re.search(r"what changed\s*microcode: 0x1, then 0x2", tip.text_content())
    context.close()
