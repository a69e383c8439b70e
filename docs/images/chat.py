"""Makes docs/images/chat.png, the picture of the chat page in the README, with a real server and a real browser.

    python docs/images/chat.py --model models/smollm2

Needs playwright, a Chromium, and a font that has 大成.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROMPT = "Write a Python function that adds two numbers, and one sentence about it."


def take(url: str, program: str, out: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 880, "height": 620}, locale="en-GB", color_scheme="light")
        page.goto(url)
        page.locator("summary").click()
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Most tokens").fill("160")
        page.locator("summary").click()
        page.locator("#text").fill(PROMPT)
        page.locator("#text").press("Enter")
        expect(page.locator("#state")).to_contain_text("tokens/s", timeout=120_000)
        page.locator("#chat").evaluate("node => node.scrollTop = 0")
        page.locator("#chat .assistant").locator(".guess, .unsure").nth(7).hover()
        expect(page.locator("#tip")).to_be_visible()
        page.screenshot(path=out)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    args = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise SystemExit("there is no Chromium on this machine")
    command = [sys.executable, "-m", "dacheng.cli", "serve", "--model", args.model, "--name", "smollm2", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start: see its message above")
        take(found[0], program, args.out)
    finally:
        process.terminate()
        process.wait(60)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
