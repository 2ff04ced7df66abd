"""Headless Chromium for browser tests. Chromium comes from a package of the operating system."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from playwright.sync_api import Browser, BrowserContext, Page, Playwright

from users.models import CustomUser

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
QUIET = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--metrics-recording-only",
    "--disable-dev-shm-usage",
    "--disable-features=OptimizationHints,Translate,MediaRouter",
]
DESKTOP, PHONE = (1280, 900), (390, 844)
MISSING = "Chromium is not installed: sudo apt-get install chromium (or KASOKO_CHROMIUM=/path/to/it)"


def find() -> str | None:
    """Return the path of Chromium: KASOKO_CHROMIUM, or the first of NAMES that is installed, or None."""
    configured = os.environ.get("KASOKO_CHROMIUM")
    return configured or next((path for name in NAMES if (path := shutil.which(name))), None)


def launch(playwright: Playwright) -> Browser:
    """Start Chromium. Chromium's sandbox does not work for root, so root starts Chromium without a sandbox."""
    sandbox_arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=find(), args=[*QUIET, *sandbox_arguments], timeout=60_000)


class Window:
    """A person's browser window. It records the hosts that it requests, and the errors of scripts."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.context, self.base = context, base
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        context.on("request", lambda request: self._note(request.url))
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self._listen(message))
        self.page.set_default_timeout(20_000)

    def _note(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):
            self.hosts.add(urlsplit(url).netloc)

    def _listen(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def go(self, path: str) -> Page:
        """Open a path of the test server."""
        self.page.goto(self.base + path)
        return self.page

    def log_in_as(self, user: CustomUser) -> None:
        """Start the session that a login would start. So tests need not fill in the login form."""
        from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY

        session = SessionStore()
        session[SESSION_KEY] = str(user.pk)
        session[BACKEND_SESSION_KEY] = "users.backends.PinBackend"
        session[HASH_SESSION_KEY] = user.get_session_auth_hash()
        session.save()
        self.context.add_cookies(
            [{"name": settings.SESSION_COOKIE_NAME, "value": str(session.session_key), "url": self.base}]
        )

    def save_screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Save a picture of the whole page, or only of its visible part."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_load_state("networkidle")
        self.page.screenshot(path=path, full_page=whole, animations="disabled")


@contextmanager
def window(browser: Browser, base: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False) -> Iterator[Window]:
    """Open a new browser window. At the end, assert that no request went to another host and no script failed."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        timezone_id="Africa/Nairobi",
        locale="en-GB",
    )
    opened = Window(context, base)
    try:
        yield opened
        assert opened.hosts <= {urlsplit(base).netloc}, f"requests to other hosts: {opened.hosts}"
        assert [error for error in opened.errors if "409" not in error and "403" not in error] == []
    finally:
        context.close()
