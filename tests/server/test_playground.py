"""The playground in headless Chromium, where there is one: `apt-get install chromium`.

Playwright brings a driver and no browser, so nothing is downloaded here.
"""

import shutil

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_visitor_can_compare_texts(server):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        asked, failed = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(server.url)
        page.select_option("#task", "text-matching")
        page.select_option("#dim", "64")
        page.fill("#texts", "a cat\nthe cat\nbread in the oven\n")
        page.click("#run")
        page.wait_for_selector("#pairs li")
        assert page.locator("#matrix tr").count() == 3
        assert page.locator("#matrix td").first.inner_text() == "1.00"
        assert "a cat / the cat" in page.locator("#pairs li").first.inner_text()
        assert "3 texts" in page.inner_text("#timing")
        page.fill("#texts", "")
        page.click("#run")
        page.wait_for_function("document.getElementById('error').textContent")
        assert not failed and all(url.startswith(server.url) for url in asked)
        browser.close()
