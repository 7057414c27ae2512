"""Reports in a real browser: they open without a network, without an error, and fit a phone."""

import shutil

import pytest
from tiny import domain

from lepton_rl import adapt
from lepton_rl.models import build_model

PHONE, DESK = 390, 1100

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium and chromedriver"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a run with test images, folds and a class name that is too long for a phone."""
    out = tmp_path_factory.mktemp("run") / "run"
    model = build_model("vgg", channels=1, n_classes=3, width=4)
    names = ("a", '<img src=x onerror="window.broken=1">', "an-extraordinarily-long-name-without-any-space-in-it" * 2)
    source, target, test = (
        type(d)(images=d.images, labels=d.labels, name=d.name, classes=names)
        for d in (domain(2, 60, 3), domain(1, 60, 3), domain(3, 40, 3))
    )
    adapt(model, source=source, target=target, test=test, budget=15, folds=2, out=out)
    return out / "report.html"


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def opened(browser, page, width):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    # Plots follow their places in the next frames.
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return browser


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_report_fits_the_screen_and_draws_everything(browser, page, width):
    browser = opened(browser, page, width)
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    plots = browser.execute_script(
        "return [...document.querySelectorAll('.plotly-graph-div')].map(p => [p.id, p.clientWidth,"
        " p.querySelectorAll('svg').length, p.getBoundingClientRect().right])"
    )
    names = {name for name, *_ in plots}
    assert {
        "scores",
        "signals",
        "confusion-before",
        "confusion-after",
        "calibration",
        "map-before",
        "map-after",
    } <= names
    assert all(wide > 100 and pictures > 0 and right <= width for _, wide, pictures, right in plots)
    images = browser.execute_script(
        "return [...document.querySelectorAll('figure img')].map(i => i.complete && i.naturalWidth)"
    )
    assert images
    assert set(images) == {6}


def test_nothing_is_fetched_nothing_fails_and_no_name_is_run(browser, page):
    browser.get_log("browser")
    browser.get_log("performance")
    browser = opened(browser, page, PHONE)
    assert browser.get_log("browser") == []
    asked = [
        line["message"] for line in browser.get_log("performance") if "Network.requestWillBeSent" in line["message"]
    ]
    assert [text for text in asked if '"url":"http' in text] == []
    assert browser.execute_script("return window.broken") is None


def test_text_is_large_enough_and_tables_scroll_inside_their_place(browser, page):
    browser = opened(browser, page, PHONE)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('p, td, th, figcaption, .bar')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 11
    assert browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].every(s => s.getBoundingClientRect().right <= innerWidth)"
    )
