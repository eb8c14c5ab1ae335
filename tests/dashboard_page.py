"""The dashboard as tests see it: a server in a thread, and what a person at the browser sees and does."""

import dataclasses
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.swap_gate import SwapGate
from deepfailguard.serving.app import create_app
from deepfailguard.serving.settings import ServerSettings
from tests.serving_examples import GuardDouble, Status

ADMIN = "the-admins-own-key-1234"
PATIENCE = 30  # seconds; only a page that hangs takes them


class LongOut(GuardDouble):
    """As if whatever is out had been out for 130 s."""

    def status(self) -> Status:
        status = super().status()
        aged = [
            one if one.state == "serving" else dataclasses.replace(one, since=one.since - 130)
            for one in status.versions
        ]
        return dataclasses.replace(status, versions=tuple(aged))


class Reluctant(GuardDouble):
    """Swaps by force only."""

    def swap(self, leaving: str, entering: str, force: bool = False) -> SwapGate:
        if not force:
            raise ConfigurationError("swap refused: the ensemble would be worse: accuracy -2.1 points")
        gate = super().swap(leaving, entering, force)
        return dataclasses.replace(gate, objections=("the ensemble would be worse: accuracy -2.1 points",))


class Served:
    """A server in a thread of its own, on a port of its own, that can be stopped and started again."""

    def __init__(self, runtime: GuardDouble, settings: ServerSettings | None = None) -> None:
        self.runtime = runtime
        self.settings = settings or ServerSettings(admin_key=ADMIN)
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        app = create_app(self.runtime, self.settings)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=5))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


class Page:
    """What a person at the browser sees and does."""

    def __init__(self, browser: WebDriver) -> None:
        self.browser = browser

    def __getitem__(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def open(self, url: str, width: int = 1280, height: int = 800) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.browser.get(url)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, PATIENCE, poll_frequency=0.05).until(lambda _: condition())

    def wait_for_text(self, name: str, text: str) -> str:
        self.wait(lambda: text in self[name].text)
        return self[name].text

    def wait_until_live(self) -> None:
        self.wait(lambda: self["connection"].get_attribute("data-level") == "live")

    def script(self, text: str, *arguments: Any) -> Any:
        return self.browser.execute_script(text, *arguments)

    def row(self, version: str) -> WebElement:
        rows = self.browser.find_elements(By.CSS_SELECTOR, "#version-rows tr")
        return next(row for row in rows if row.find_element(By.CSS_SELECTOR, ".name").text == version)

    def click(self, label: str) -> None:
        def found() -> WebElement | None:
            buttons = self.browser.find_elements(By.CSS_SELECTOR, "#version-rows button")
            return next((one for one in buttons if one.get_attribute("aria-label") == label), None)

        self.wait(found).click()

    def fill(self, **fields: str) -> None:
        for name, text in fields.items():
            self[name].clear()
            self[name].send_keys(text)

    def sees(self, element: WebElement) -> bool:
        """Whether all of it is on the screen without scrolling."""
        return bool(
            self.script(
                "const box = arguments[0].getBoundingClientRect();"
                "return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight && box.right <= innerWidth",
                element,
            )
        )
