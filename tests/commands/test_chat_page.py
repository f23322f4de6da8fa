"""`minimind-trl chat --web` in a browser without a screen; skipped where gradio, playwright or chromium are missing."""

import re
import shutil
import socket

import pytest

from tests.commands.test_serve import trained  # noqa: F401
from tests.forking import says, start

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_the_page_answers_and_shows_reasoning_apart(trained, tmp_path):  # noqa: F811
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    process = start("minimind_trl.cli", ["chat", trained, "--web", "--port", port, "--thinking"], stdout=log)
    try:
        assert says(log, "Ctrl-C ends it", 120), log.read_text()
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}", timeout=60_000)
            box = page.get_by_role("textbox").first
            box.fill("Why?", timeout=60_000)
            box.press("Enter")
            page.get_by_text("Five.", exact=True).wait_for(timeout=60_000)
            assert re.search(r"Thinking", page.inner_text("body"))
            browser.close()
    finally:
        process.terminate()
        process.join(30)
