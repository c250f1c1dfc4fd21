"""The report in a real browser: what is clicked, dark and light, a phone's width, print, and that nothing is loaded."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import report
from tests.bench.conftest import CURVE, ROOF, failed_row, make_profile, make_row

webdriver = pytest.importorskip("selenium.webdriver", reason='selenium is not installed: pip install "tvmopt[test]"')
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    missing = " and ".join(name for name in ("chromium", "chromedriver") if shutil.which(name) is None)
    pytest.skip(f"{missing} not found: apt-get install chromium chromium-driver", allow_module_level=True)

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(22, 25, 29)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every chart, and with names of all lengths."""
    rows = [
        make_row("original", 9.0, profile=make_profile(90), roof=ROOF, unstable=True),
        make_row("auto", 0.1, profile=make_profile(1), roof=ROOF, tuning_curve=CURVE),
        make_row("manual", 0.2, profile=make_profile(2), roof=ROOF),
        make_row("peer:onnxruntime", 0.3),
        failed_row("peer:openvino", "x" * 300),
        make_row("auto", 0.05, sparsity=0.9, method="magnitude"),
        make_row("auto", 4.0, model="torchvision:" + "long" * 20, accuracy=None),
    ]
    document = {"schema_version": 1, "environment": {"host": "h" * 80, "cpu": "Some CPU"}, "results": rows}
    return report.write([("run.json", document)], tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def page(browser: Any, file: Path) -> Any:
    emulate(browser, "light", 1100)
    browser.get_log("browser")
    browser.get(file.as_uri())
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def emulate(browser: Any, scheme: str, width: int) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def column(page: Any, name: str) -> list[str]:
    """The visible cells under a heading."""
    return list(page.execute_script(
        """const table = document.getElementById("result-table");
        const index = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[0]);
        return [...table.tBodies[0].rows].filter((row) => row.offsetParent).map((row) => row.cells[index].textContent);
        """, name))  # fmt: skip


def click(page: Any, name: str) -> str:
    """Clicks a heading; its aria-sort."""
    (heading,) = [th for th in page.find_elements("css selector", "#result-table th") if th.text.startswith(name)]
    heading.find_element("tag name", "button").click()
    return str(heading.get_attribute("aria-sort"))


def test_headings_sort_both_ways_and_empty_cells_stay_last(page: Any) -> None:
    before = column(page, "contender")
    assert before == ["original", "auto", "manual", "onnxruntime", "openvino", "auto", "auto"]
    assert click(page, "median ms") == "ascending"
    up = column(page, "contender")
    assert [float(text.rstrip(" !")) for text in column(page, "median ms")[:-1]] == sorted(
        float(text.rstrip(" !")) for text in column(page, "median ms")[:-1]
    )
    assert column(page, "median ms")[-1] == "failed"
    assert click(page, "median ms") == "descending"
    down = column(page, "contender")
    assert down[:-1] == up[:-1][::-1] != before[:-1] and down[-1] == up[-1] == "openvino"
    assert click(page, "contender") == "ascending"
    assert column(page, "contender") == sorted(before)
    sorts = [th.get_attribute("aria-sort") for th in page.find_elements("css selector", "#result-table th")]
    assert sorted(sorts, reverse=True)[:-1] == ["none"] * (len(sorts) - 1)


def test_headings_are_reached_and_pressed_by_keyboard(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.execute_script('document.querySelector("input[name=text]").focus()')
    page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("class") == "wide", "the table scrolls by arrow keys"
    page.switch_to.active_element.send_keys(Keys.TAB)
    first = page.switch_to.active_element
    assert first.tag_name == "button" and first.text.startswith("model")
    first.send_keys(Keys.ENTER)
    assert column(page, "model") == sorted(column(page, "model"))
    assert column(page, "model")[-1].startswith("torchvision")


def test_filters_hide_rows(page: Any) -> None:
    from selenium.webdriver.support.select import Select

    count = page.find_element("css selector", ".filters output")
    assert count.text == "7 of 7 rows"
    kind = Select(page.find_element("name", "kind"))
    kind.select_by_visible_text("peers")
    assert column(page, "contender") == ["onnxruntime", "openvino"] and count.text == "2 of 7 rows"
    kind.select_by_visible_text("ours")
    model = Select(page.find_element("name", "model"))
    model.select_by_visible_text("digits_cnn")
    assert column(page, "contender") == ["original", "auto", "manual", "auto"]
    text = page.find_element("name", "text")
    text.send_keys("MAGNI")
    assert column(page, "setting") == ["90% magnitude"] and count.text == "1 of 7 rows"
    text.clear()
    text.send_keys("no such thing")
    assert column(page, "contender") == [] and count.text == "0 of 7 rows"


def charts(page: Any) -> list[dict[str, Any]]:
    """Of each chart what plotly drew: its width, background and whether there is anything in it."""
    return list(page.execute_script(
        """return [...document.querySelectorAll(".chart")].map((place) => ({
            width: place.querySelector(".main-svg")?.getBoundingClientRect().width,
            paper: place.querySelector(".main-svg")?.style.background,
            drawn: place.querySelectorAll(".trace, .bars").length,
            text: place.querySelector(".xtick text")?.style.fill,
        }))"""))  # fmt: skip


def wait_for_paper(page: Any, colour: str) -> None:
    """The browser tells the page of a new scheme when it comes to it."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(page, 10).until(lambda _: {chart["paper"] for chart in charts(page)} == {colour})


def test_all_charts_are_drawn_and_follow_the_colour_scheme(page: Any) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    light = charts(page)
    assert len(light) == 9 and all(chart["drawn"] for chart in light)
    assert {chart["paper"] for chart in light} == {LIGHT} and page.execute_script(background) == LIGHT
    bar = 'return document.querySelectorAll("#latency .point path")[1].style.fill'
    before = page.execute_script(bar)
    emulate(page, "dark", 1100)
    wait_for_paper(page, DARK)
    dark = charts(page)
    assert {chart["paper"] for chart in dark} == {DARK} and page.execute_script(background) == DARK
    assert {chart["text"] for chart in light} == {"rgb(27, 31, 36)"}
    assert {chart["text"] for chart in dark} == {"rgb(232, 234, 237)"}
    assert (before, page.execute_script(bar)) == ("rgb(213, 94, 0)", "rgb(242, 128, 58)")
    emulate(page, "light", 1100)
    wait_for_paper(page, LIGHT)
    assert charts(page) == light


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Any, file: Path) -> None:
    emulate(page, "light", 390)
    page.get(file.as_uri())
    width = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width == [390, 390]
    assert all(300 < chart["width"] <= 390 for chart in charts(page))
    # The wide table scrolls in itself.
    assert page.execute_script('const w = document.querySelector(".wide"); return w.scrollWidth > w.clientWidth')


def test_nothing_is_requested_and_nothing_could_be(page: Any) -> None:
    assert page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    allowed = page.execute_async_script(
        """const done = arguments[0];
        const image = new Image();
        image.onload = () => done(true);
        image.onerror = () => done(false);
        image.src = "file:///nowhere.png";""")  # fmt: skip
    assert allowed is False
    messages = [entry["message"] for entry in page.get_log("browser")]
    assert len(messages) == 1 and "Content Security Policy" in messages[0]


def test_print_is_light_fits_the_paper_and_has_no_controls(page: Any, file: Path) -> None:
    emulate(page, "dark", 1100)
    page.get(file.as_uri())
    page.execute_script(
        """window.seen = [];
        addEventListener("beforeprint", () => document.querySelectorAll(".chart .main-svg").forEach((svg) =>
            seen.push([svg.style.background, svg.getAttribute("width")])));""")  # fmt: skip
    paper = {"preferCSSPageSize": True, "paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True}
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", paper)["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") >= 2
    seen = page.execute_script("return window.seen")
    assert len(seen) >= 8 and {width for _, width in seen} == {"680"}
    assert {background for background, _ in seen if background} == {LIGHT}
    wait_for_paper(page, DARK)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = 'return [".filters", "nav"].map((name) => getComputedStyle(document.querySelector(name)).display)'
    assert page.execute_script(hidden) == ["none", "none"]
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == LIGHT
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_scripts_the_tables_are_there(page: Any, file: Path) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get(file.as_uri())
        table = page.find_element("id", "result-table")
        assert "onnxruntime" in table.text and not page.find_element("class name", "filters").is_displayed()
        assert "need JavaScript" in page.find_element("tag name", "main").text
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
