"""Takes deploy/page.png: the page of a daemon that answers a few clients.

    build/venv/bin/pip install playwright pillow
    NIBBLE_BIN=build/release/server/nibble build/venv/bin/python tests/deploy/screenshot_page.py
"""

import itertools
import pathlib
import sys
import threading

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from daemon import Daemon  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

PICTURE = ROOT / "deploy/page.png"
MODEL = ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = ("What is gravity?", "Name three rivers of Europe.", "Why is the sky blue?", "How do bees find their way home?")
LOAD_SECONDS = 75


def load(client, questions, stopping):
    while not stopping.wait(0.3):
        client.ask(chat={"messages": [{"role": "user", "content": next(questions)}]}, stopping={"max_tokens": 64})


def main():
    with Daemon(f"smollm2={MODEL}", args=("--http-prompt", "--memory=2GiB")) as daemon, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.goto(f"http://{daemon.http}/")
        client, questions, stopping = daemon.client(), itertools.cycle(QUESTIONS), threading.Event()
        threads = [threading.Thread(target=load, args=(client, questions, stopping)) for _ in range(3)]
        for thread in threads:
            thread.start()
        page.wait_for_timeout(LOAD_SECONDS * 1000)
        page.get_by_label("Prompt", exact=True).fill("What is gravity?")
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Most tokens").fill("100")
        page.get_by_role("button", name="Send").click()
        page.get_by_text("of the prompt, the first in").wait_for(timeout=60000)
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=PICTURE, full_page=True)
        Image.open(PICTURE).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
        stopping.set()
        for thread in threads:
            thread.join()
        browser.close()


if __name__ == "__main__":
    main()
