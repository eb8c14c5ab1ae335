"""The dashboard as an operator meets it: pictures of a sound guard and of a sick one, and how soon it says who is sick.

    python benchmarks/dashboard.py [--quick] [--json PATH] [--folder outputs/benchmarks/dashboard]

`deepfailguard serve` runs five versions trained on digits in processes of their own, and clients send pictures. Then
the process of one version is killed whose file was damaged, so that it cannot come back. A browser (Debian's packages
chromium and chromium-driver) that opens the page now must show, without scrolling, which version it is and since when.
"""

import argparse
import http.client
import io
import os
import platform
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `benchmarks`, `mydataset`, `mymodel` are found

from benchmarks.reporting import Bar, as_json, bar_lines, say, write_json
from benchmarks.serving_load.server import ROOT, Server
from benchmarks.serving_load.subjects import Subject, digits_guard, fresh_state

KEPT: Final = ROOT / "outputs" / "benchmarks" / "serving"
PICTURES: Final = KEPT.parent / "dashboard"
WIDTH, HEIGHT = 1280, 800
SECONDS_TO_SEE: Final = 10.0
LONGEST: Final = 60.0
PAUSE: Final = 0.1


def main() -> None:
    """Take the pictures, print, and write what was asked for."""
    options = arguments()
    seconds = 5.0 if options.quick else 60.0
    subject = digits_guard(KEPT, say)
    assert subject.folder is not None
    guard = PICTURES / "guard"
    shutil.rmtree(guard, ignore_errors=True)
    shutil.copytree(subject.folder, guard)
    state = fresh_state(PICTURES / "state")
    options.folder.mkdir(parents=True, exist_ok=True)
    shown = guard.relative_to(ROOT)  # the page tells where a damaged file is
    with (
        Server(shown, state, PICTURES / "server.log", ["--isolation", "processes"]) as server,
        traffic(server, subject),
    ):
        say(f"{seconds:g} s of traffic")
        time.sleep(seconds)
        with browser() as page:
            open_page(page, server.port)
            until(lambda: "serving" in page.find_element(By.ID, "version-rows").text)
            picture(page, options.folder / "dashboard_healthy.png")
        broken = time.time()
        sick = break_one(server, guard)
        say(f"version {sick} was killed and its file damaged; {seconds:g} s of traffic")
        time.sleep(seconds)
        with browser() as page:
            start = time.perf_counter()
            open_page(page, server.port)
            until(lambda: sick in page.find_element(By.ID, "sick").text)
            took = time.perf_counter() - start
            told, seen = page.find_element(By.ID, "sick"), visible(page, "sick")
            text, headline = " ".join(told.text.split()), page.find_element(By.ID, "headline").text
            picture(page, options.folder / "dashboard_sick.png")
            show_a_verdict(page, subject, options.folder)
    results = {"seconds": took, "visible": seen, "headline": headline, "told": text, "sick": sick, "broken": broken}
    bars = [
        Bar("dashboard", "seconds until it names the sick version and since when", took, SECONDS_TO_SEE, note=text),
        Bar("dashboard", "without scrolling", float(seen), 1, at_least=True, note=headline),
    ]
    print("\n".join([f"pictures in {options.folder}", *bar_lines(bars)]))
    if options.json:
        machine = platform.processor() or platform.machine()
        told_of = {"machine": machine, "cores": os.cpu_count(), "busy": os.getloadavg()[0], "quick": options.quick}
        write_json(options.json, as_json(told_of, results, bars))


@contextmanager
def traffic(server: Server, subject: Subject) -> Iterator[None]:
    """Two clients that send pictures while it is entered."""
    stop, contents = threading.Event(), [png_of(subject, number) for number in range(len(subject.images))]

    def ask(seed: int) -> None:
        connection, draw = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONGEST), random.Random(seed)
        while not stop.wait(PAUSE):  # in any order: the watch would notice that few come again and again
            connection.request("POST", "/predict", draw.choice(contents), {"Content-Type": "image/png"})
            connection.getresponse().read()
        connection.close()

    clients = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(2)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        stop.set()
        for client in clients:
            client.join(LONGEST)


def png_of(subject: Subject, number: int) -> bytes:
    """A digit as a picture file."""
    pixels = (subject.images[number] * 255).round().byte().permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(content, "PNG")
    return content.getvalue()


def break_one(server: Server, guard: Path) -> str:
    """Damage the files of all versions and kill the process of one; its name when the server has noticed."""
    for path in (guard / "versions").glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    workers_of(server)[-1].kill()
    until(lambda: out_of_service(server))
    return out_of_service(server)[0]


def out_of_service(server: Server) -> list[str]:
    """Names of the versions that do not serve."""
    return [version["name"] for version in server.get("/status")["versions"] if version["state"] != "serving"]


def workers_of(server: Server) -> list[Any]:
    """Processes of versions: those that the fork server of the guard's process started."""
    processes = server._processes()
    servers = {each.pid for each in processes if any("forkserver" in part for part in each.cmdline())}
    return sorted((each for each in processes if each.ppid() in servers), key=lambda each: int(each.pid))


@contextmanager
def browser() -> Iterator[WebDriver]:
    """A fresh one, as that of an operator who was called at night."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for argument in (
        "--headless=new",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-first-run",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    opened = webdriver.Chrome(options=options, service=Service(executable_path=program("chromedriver")))
    try:
        yield opened
    finally:
        opened.quit()


def program(name: str) -> str:
    """Its path."""
    return shutil.which(name) or sys.exit(f"dashboard.py needs {name}: apt-get install chromium chromium-driver")


def open_page(page: WebDriver, port: int) -> None:
    """Open the dashboard on a screen of fixed size."""
    screen = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    page.get(f"http://127.0.0.1:{port}/")


def show_a_verdict(page: WebDriver, subject: Subject, folder: Path) -> None:
    """Drop an image, and take the picture of what is said about it."""
    image = PICTURES / "digit.png"
    image.write_bytes(png_of(subject, 0))
    page.find_element(By.ID, "file").send_keys(str(image))
    verdict = page.find_element(By.ID, "verdict")
    until(lambda: verdict.text)
    page.execute_script("document.getElementById('try-title').scrollIntoView()")
    picture(page, folder / "dashboard_verdict.png")


def picture(page: WebDriver, path: Path) -> None:
    """What the screen shows, once its curves have moved on."""
    time.sleep(2.0)
    page.save_screenshot(str(path))


def visible(page: WebDriver, name: str) -> bool:
    """Whether all of an element is on the screen without scrolling."""
    script = (
        "const box = document.getElementById(arguments[0]).getBoundingClientRect();"
        "return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight && box.right <= innerWidth"
    )
    return bool(page.execute_script(script, name))


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"the page did not come to what was expected within {LONGEST:g} s")
        time.sleep(0.05)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds of traffic instead of minutes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--folder", type=Path, default=PICTURES, help="for the pictures (%(default)s)")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    return options


if __name__ == "__main__":
    main()
