"""A real browser for tests of the page: headless Chromium. Debian has it in the packages chromium and chromium-driver.

The variable CI_BROWSER says whether its tests run: 0 skips them, 1 has them fail where there is no browser. Without it
they run where there is one.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager

import pytest

#: Seconds after which a test gives up on the page.
PATIENCE = 60.0

#: A name for this machine, which browsers do not take for it.
PLAIN_HOST = "budgets.test"

_SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # it has none for the superuser, whom containers run as
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",  # nothing goes out
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-features=OptimizationHints,MediaRouter,Translate",
    f"--host-resolver-rules=MAP {PLAIN_HOST} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def _missing(what):
    if os.environ.get("CI_BROWSER") == "1":
        pytest.fail(f"{what}, and CI_BROWSER=1 says that the page's tests must run")
    pytest.skip(f"{what}, which the page's tests need")


def _path_of(*names):
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    return _missing(f"there is no {names[0]}")


@contextmanager
def chromium(folder):
    """A driver of a browser with a profile in a folder. It is ended with all its processes."""
    if os.environ.get("CI_BROWSER") == "0":
        pytest.skip("the page's tests run once: with the README's command")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ModuleNotFoundError:
        _missing("selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = _path_of("chromium", "chromium-browser", "google-chrome")
    for switch in (*_SWITCHES, f"--user-data-dir={folder}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Its path is given, because selenium would look for one on the network.
    service = Service(_path_of("chromedriver"), log_output=os.path.join(str(folder), "driver.log"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("no_proxy", "*")
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield driver
        finally:
            driver.quit()


class Looker:
    """Somebody who looks at the page in a tab of their own."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, key=None):
        """Open the page, and give it a key."""
        self.driver.get(url + "/")
        if key is not None:
            self.give(key)

    def give(self, key):
        """Type a key, and Enter."""
        self.wait(lambda: self.one("#key").is_displayed())
        self.one("#key").send_keys(key + "\n")

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self, selector="body"):
        """What can be read there now; white space counts as one space."""
        return " ".join(self.js("return document.querySelector(arguments[0]).innerText", selector).split())

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, until):
        """Wait until a function returns something true, and return that. An element may go while it is looked at."""
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = (StaleElementReferenceException,)
        try:
            return WebDriverWait(self.driver, PATIENCE, 0.05, ignored).until(lambda driver: until())
        except TimeoutException:
            state = self.js("return [document.hidden, looking !== null, shown !== null, failures]")
            pytest.fail(f"the page, where hidden, looking, shown and failures are {state}, says:\n{self.text()}")

    def sees(self, *texts, within="body"):
        """Wait until all the texts can be read."""
        self.wait(lambda: all(text in self.text(within) for text in texts))

    def look_again(self):
        """Have the page look now, and wait until it has. It does so by itself too, but not that soon; and one that is
        looking already may have seen what was before."""
        begin = "window.before = shown; document.dispatchEvent(new Event('visibilitychange')); return true"
        self.wait(lambda: self.js("if (looking) return false; " + begin))
        self.wait(lambda: self.js("return shown !== window.before && looking === null"))

    def press(self, *keys):
        """Press keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    @property
    def focused(self):
        """What the focus is on, by its text or its id."""
        return self.js("return document.activeElement.innerText || document.activeElement.id")

    def emulate(self, width=1000, **features):
        """Be a screen of a width in pixels, and prefer what is given, such as `prefers_color_scheme="dark"`."""
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        told = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": told})

    def complaints(self):
        """What the browser's console has by now, but for requests that failed: violations of policies, and errors."""
        return [entry for entry in self.driver.get_log("browser") if entry["source"] != "network"]

    def stored(self):
        """Everything outside of the script where the tab could have kept a key, but for the tab's own storage."""
        kept = self.js("return [location.href, {...localStorage}, document.cookie, document.title, history.length]")
        return json.dumps(kept) + self.driver.page_source


@contextmanager
def looking(driver):
    """A `Looker` in a new tab. Fails where the browser had to complain."""
    before = driver.current_window_handle
    driver.switch_to.new_window("tab")
    looker = Looker(driver)
    looker.emulate()
    looker.complaints()
    try:
        yield looker
        assert looker.complaints() == []
        assert "/?" not in driver.current_url
    finally:
        driver.close()
        driver.switch_to.window(before)
