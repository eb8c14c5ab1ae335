"""The dashboard in a real browser, against the real server."""

import base64
import io
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.serving.settings import ServerSettings
from tests.dashboard_page import ADMIN, PATIENCE, LongOut, Page, Reluctant, Served
from tests.examples import bars, template_model
from tests.serving_examples import GuardDouble, images_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "deepfailguard" / "serving" / "dashboard"
KEY = "what-every-client-knows-1"
HOSTILE = "<img src=x onerror=window.hacked=1>"


def path_of(program: str) -> str:
    return shutil.which(program) or pytest.skip(f"the dashboard's tests need {program}; there is none on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    options, driver = webdriver.ChromeOptions(), path_of("chromedriver")
    options.binary_location = path_of("chromium")
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # the page works without internet
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", nowhere):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser: WebDriver) -> Iterator[Page]:
    yield Page(browser)
    browser.execute_script("sessionStorage.clear()")
    browser.get("about:blank")
    browser.get_log("browser")


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(*arguments: Any) -> Served:
        running.append(Served(*arguments))
        return running[-1]

    yield start
    for served in running:
        served.stop()


def picture(label: int) -> bytes:
    """A PNG of a class."""
    images = bars(50, seed=9)
    pixels = images.images[images.labels == label][0, 0]
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().byte().numpy()).save(file, "PNG")
    return file.getvalue()


def predicted(url: str, png: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/predict", png, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        told: dict[str, Any] = json.loads(answer.read())
    return told


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|style=|<script(?![^>]*\ssrc=)|\son\w+=|javascript:", html)
    named = re.findall(r'(?:href|src)="static/([^"]+)"', html)
    assert len(named) >= 4
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    for path in files:
        text = path.read_text()
        assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text.replace("http://www.w3.org/2000/svg", "")) == []
        named += re.findall(r'from "\./([^"]+)"', text)
        if path.suffix == ".js":
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", text)
            assert "localStorage" not in text
    assert set(named) == {path.name for path in files} - {"index.html"}


def test_a_healthy_guard(page: Page, serve: Callable[..., Served]) -> None:
    runtime = GuardDouble()
    runtime(images_of(40))
    page.open(serve(runtime).url)
    page.wait_for_text("headline", "All 3 versions serve")
    assert page["connection"].text.endswith("live")
    for name in ("steady", "noisy", "odd"):
        row = page.row(name)
        assert "serving" in row.text
        assert "100.0%" in row.text
        assert row.find_element(By.CSS_SELECTOR, ".latency .content").text != "–"
    assert "2 / 4 ms" in page.row("steady").text
    assert "40 since the start" in page["tiles"].text
    assert not page["sick"].is_displayed()
    wrong = [entry for entry in page.browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]
    assert wrong == []  # also what a strict Content-Security-Policy would refuse


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (375, 740)])
def test_who_is_sick_and_since_when_is_the_first_thing_seen(
    page: Page, serve: Callable[..., Served], width: int, height: int
) -> None:
    runtime = LongOut()
    runtime.suspend("noisy", "timeout: no answer within 0.5 s")
    page.open(serve(runtime).url, width, height)
    page.wait_for_text("headline", "Degraded: 1 of 3 versions is out")
    sick = page["sick"]
    for told in ("noisy", "suspended", "for 2 min, since ", "timeout: no answer within 0.5 s"):
        assert told in sick.text
    assert "steady" not in sick.text
    assert page.sees(page["headline"])
    assert page.sees(sick)
    assert "Degraded" in page.browser.title
    boxes = "[document.documentElement, document.getElementById('versions')]"
    assert page.script(f"return {boxes}.every((box) => box.scrollWidth <= box.clientWidth)")


def test_too_few_versions_and_drift(page: Page, serve: Callable[..., Served]) -> None:
    runtime = GuardDouble(least_versions=2)
    page.open(serve(runtime).url)
    page.wait_for_text("headline", "All 3 versions serve")
    runtime.drift = "inputs"
    page.wait_for_text("headline", "but the inputs have changed")
    assert "inputs changed" in page["drift"].text
    runtime.suspend("noisy")
    runtime.suspend("odd")
    page.wait_for_text("headline", "NOT READY: 1 of 3 versions serves, 2 must")
    assert "noisy suspended: timeout" in page["events"].text
    runtime.release("noisy")
    page.wait_for_text("headline", "Degraded: 1 of 3 versions is out")
    assert "odd" in page["sick"].text
    assert "noisy" not in page["sick"].text


def test_an_image_is_judged(page: Page, serve: Callable[..., Served], tmp_path: Path) -> None:
    runtime = LongOut()
    runtime.suspend("odd")
    served = serve(runtime)
    (tmp_path / "bar.png").write_bytes(picture(0))
    told = predicted(served.url, picture(0))
    page.open(served.url)
    page.wait_until_live()
    page["file"].send_keys(str(tmp_path / "bar.png"))
    page.wait(lambda: page["verdict"].is_displayed())
    verdict = page["verdict"]
    answer = "The guard abstains" if told["abstained"] else told["class"]
    assert verdict.find_element(By.CSS_SELECTOR, ".answer-is").text == answer
    assert f"{told['failure_probability']:.1%}" in verdict.find_element(By.CSS_SELECTOR, ".told-of").text
    assert "Degraded" in verdict.text
    assert told["explanation"].splitlines()[1].removeprefix("  - ") in verdict.text
    rows = verdict.find_elements(By.CSS_SELECTOR, ".said tbody tr")
    assert [row.find_element(By.TAG_NAME, "th").text.split()[0] for row in rows] == ["steady", "noisy", "odd"]
    for row, one in zip(rows[:2], told["versions"][:2], strict=True):
        assert one["class"] in row.text
        assert f"{one['weight']:.3g}" in row.text
        bars_shown = [float(bar.get_attribute("width")[:-1]) for bar in row.find_elements(By.TAG_NAME, "rect")]
        assert bars_shown == pytest.approx([100 * one["failure_probability"], 100 * one["weight"]], abs=0.06)
    assert "suspended" in rows[2].text
    assert "no answer" in rows[2].text
    canvas = verdict.find_element(By.TAG_NAME, "canvas")
    assert "8 × 8 pixels" in canvas.get_attribute("aria-label")


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_an_image_can_be_dropped_and_pasted(page: Page, serve: Callable[..., Served], how: str) -> None:
    page.open(serve(GuardDouble()).url)
    page.wait_until_live()
    page.script(
        "const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0)), moved = new DataTransfer();"
        "moved.items.add(new File([bytes], 'bar.png', {type: 'image/png'}));"
        "const options = {bubbles: true, cancelable: true, dataTransfer: moved, clipboardData: moved};"
        "const event = arguments[1] === 'drop' ? new DragEvent('drop', options) : new ClipboardEvent('paste', options);"
        "document.body.dispatchEvent(event)",
        base64.b64encode(picture(1)).decode(),
        how,
    )
    page.wait(lambda: page["verdict"].is_displayed())
    assert page["verdict"].find_element(By.CSS_SELECTOR, ".answer-is").text


def test_what_is_no_image_is_told(page: Page, serve: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture at all")
    page.open(serve(GuardDouble()).url)
    page.wait_until_live()
    page["file"].send_keys(str(tmp_path / "notes.png"))
    page.wait(lambda: page["try-error"].is_displayed())
    assert re.search(r"No verdict: .*\(4\d\d", page["try-error"].text)
    assert not page["verdict"].is_displayed()


def test_quarantine_and_release_by_click(page: Page, serve: Callable[..., Served]) -> None:
    runtime = GuardDouble()
    page.open(serve(runtime).url)
    page.click("Quarantine noisy")
    page.fill(key="a-wrong-key-of-some-length")
    page["confirm"].click()
    assert "A reason is needed" in page["dialog-answer"].text
    page.fill(reason="odd since the update", key="a-wrong-key-of-some-length")
    page["confirm"].click()
    assert "(401" in page.wait_for_text("dialog-answer", "admin key")
    assert all(one.state == "serving" for one in runtime.status().versions)
    page.fill(key=ADMIN)
    page["key"].send_keys(Keys.ENTER)
    page.wait(lambda: not page["dialog"].is_displayed())
    page.wait(lambda: "quarantined" in page.row("noisy").text)
    assert "odd since the update" in page["sick"].text
    assert [one.state for one in runtime.status().versions] == ["serving", "quarantined", "serving"]
    assert ADMIN in page.script("return Object.values(sessionStorage)")
    assert page.script("return [localStorage.length, document.cookie]") == [0, ""]
    page.click("Release noisy")
    assert "odd since the update" in page["dialog-text"].text
    page["confirm"].click()  # the key is known by now
    page.wait_for_text("headline", "All 3 versions serve")


def test_a_refused_swap_can_be_forced(page: Page, serve: Callable[..., Served]) -> None:
    runtime = Reluctant()
    runtime.make_shadow("odd")
    page.open(serve(runtime).url)
    page.click("Swap in odd")
    Select(page["leaving"]).select_by_value("noisy")
    page.fill(key=ADMIN)
    assert not page["force"].is_displayed()
    page["confirm"].click()
    page.wait_for_text("dialog-answer", "the ensemble would be worse")
    assert [one.state for one in runtime.status().versions] == ["serving", "serving", "shadow"]
    page["force"].click()
    page.wait_for_text("dialog-answer", "odd serves in place of noisy, by force")
    assert "the ensemble would be worse" in page["dialog-answer"].text
    assert [one.state for one in runtime.status().versions] == ["serving", "shadow", "serving"]
    page["cancel"].click()
    page.wait(lambda: "shadow" in page.row("noisy").text)


def test_an_allowed_swap_tells_what_the_gate_said(page: Page, serve: Callable[..., Served]) -> None:
    runtime = GuardDouble()
    runtime.make_shadow("odd")
    page.open(serve(runtime).url)
    page.click("Swap in odd")
    page.fill(key=ADMIN)
    page["confirm"].click()
    page.wait_for_text("dialog-answer", "odd serves in place of steady.")
    assert "not shown to be worse" in page["dialog-answer"].text
    assert "Gain in accuracy: +1.0 points (−1.0 to +3.0), on 500 images" in page["dialog-answer"].text


def test_a_server_that_is_gone_is_told_and_seen_again(page: Page, serve: Callable[..., Served]) -> None:
    served = serve(GuardDouble())
    page.open(served.url)
    page.wait_for_text("headline", "All 3 versions serve")
    served.stop()
    page.wait_for_text("headline", "The server does not answer")
    assert "All 3" not in page["state"].text + page.browser.title
    assert "not live" in page["connection"].text
    assert "is old: it came at" in page["note"].text
    page.wait_for_text("note", "Next try in")
    assert page["main"].get_attribute("data-old") is not None
    served.start()
    page["again"].click()
    page.wait_for_text("headline", "All 3 versions serve")
    assert page["main"].get_attribute("data-old") is None


def test_a_hidden_tab_asks_nothing_and_says_so(page: Page, serve: Callable[..., Served]) -> None:
    runtime = GuardDouble()
    page.open(serve(runtime).url)
    page.wait_until_live()
    hide = (
        "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.script(hide, True)
    page.wait_for_text("headline", "Paused")
    assert "All 3" not in page.browser.title
    runtime.suspend("odd")
    page.script(hide, False)
    page.wait_for_text("headline", "Degraded: 1 of 3 versions is out")


def test_the_servers_key_is_asked_for_once(page: Page, serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(GuardDouble(), ServerSettings(key=KEY, admin_key=ADMIN))
    (tmp_path / "bar.png").write_bytes(picture(0))
    page.open(served.url)
    page.wait(lambda: page["dialog"].is_displayed())
    page["cancel"].click()
    page.wait_for_text("headline", "The server wants a key")
    page["again"].click()
    page.wait(lambda: page["dialog"].is_displayed())
    page.fill(key="not-the-servers-key")
    page["confirm"].click()
    page.wait_for_text("dialog-answer", "(401")
    page.fill(key=KEY)
    page["confirm"].click()
    page.wait_for_text("headline", "All 3 versions serve")
    page["file"].send_keys(str(tmp_path / "bar.png"))
    page.wait(lambda: page["verdict"].is_displayed())
    assert not page["dialog"].is_displayed()


def test_names_are_text_and_never_markup(page: Page, serve: Callable[..., Served], tmp_path: Path) -> None:
    models = {name: template_model(seed, 0.3 * seed) for seed, name in enumerate((HOSTILE, "b?c#d%2F é", "plain"))}
    guard = GuardedPredictor.fit(models, bars(200, seed=5), classes=(HOSTILE, "<b>b</b>", "c"))
    runtime = GuardDouble(guard)
    runtime.drift = HOSTILE
    (tmp_path / "bar.png").write_bytes(picture(0))
    page.open(serve(runtime).url)
    page.click(f"Quarantine {HOSTILE}")
    page.fill(reason=HOSTILE, key=ADMIN)
    page["confirm"].click()
    page.wait(lambda: "quarantined" in page.row(HOSTILE).text)
    page.click("Quarantine b?c#d%2F é")
    page.fill(reason="its name is hard to send")
    page["confirm"].click()
    page.wait(lambda: "quarantined" in page.row("b?c#d%2F é").text)
    page["file"].send_keys(str(tmp_path / "bar.png"))
    page.wait(lambda: page["verdict"].is_displayed())
    for part in ("sick", "versions", "events", "drift", "verdict"):
        assert HOSTILE in page[part].text
    assert page.script("return [document.querySelectorAll('img, main b b').length, window.hacked ?? 0]") == [0, 0]


def test_it_can_be_used_by_keyboard_and_screen_reader(page: Page, serve: Callable[..., Served]) -> None:
    runtime = GuardDouble()
    page.open(serve(runtime).url)
    page.wait_until_live()
    nameless = page.script(
        "return [...document.querySelectorAll('button, input, select, a')].filter((one) => one.checkVisibility() && !("
        "one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length)).map((one) => one.outerHTML)"
    )
    assert nameless == []
    button = page.row("noisy").find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)
    assert page.script("return document.activeElement.id") == "reason"
    page["reason"].send_keys("by hand", Keys.TAB, ADMIN, Keys.ENTER)
    page.wait(lambda: button.text == "Release")
    assert page.script("return document.activeElement.getAttribute('aria-label')") == "Release noisy"
    spoken = page.script("return document.getElementById('spoken').textContent")
    assert spoken.startswith("Degraded: 1 of 3 versions is out. noisy: quarantined. by hand")
    assert " min" not in spoken  # or it would be read out again and again
