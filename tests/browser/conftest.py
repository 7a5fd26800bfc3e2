"""A headless Chromium, with a profile of its own per test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def _chromium() -> str | None:
    named = os.environ.get("CHIPLINE_CHROMIUM")
    return (
        named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    )


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A page of a browser that has seen nothing yet."""
    program = _chromium()
    if program is None:
        # Not skipped where it must run: a skipped browser test would look like a passed one.
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed: apt-get install chromium")
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=program,
            headless=True,
            args=_FLAGS,
            viewport={"width": 1200, "height": 1400},
        )
        # Other tests run meanwhile.
        context.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        try:
            yield context.new_page()
        finally:
            context.close()
