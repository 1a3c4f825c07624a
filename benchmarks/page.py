"""From stroke to prediction on the page of demo.py, in headless Chromium, and its picture.

python benchmarks/page.py data.source=npm

It needs Debian's chromium and chromium-driver. Examples are real drawings of meta-test classes;
then a lollipop is drawn by mouse. The time is from the first stroke that the server has not seen
to its probabilities on the page.
"""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import metadraw
from metadraw.command.cli import one_line_errors

ROOT = Path(__file__).resolve().parents[1]
OUT, PICTURE = ROOT / "benchmarks" / "results" / "page.md", ROOT / "docs" / "page.png"
CHECKPOINT = "checkpoints/best.ckpt"
CLASSES, SHOTS = ("smiley face", "lollipop", "tent", "clock", "table"), 3
CIRCLE = [
    (160 + 70 * math.cos(angle / 12 * math.pi), 95 + 70 * math.sin(angle / 12 * math.pi))
    for angle in range(6, 31)
]
SPIRAL = [
    (160 + 2.2 * turn * math.cos(turn / 3), 95 + 2.2 * turn * math.sin(turn / 3))
    for turn in range(24)
]
LOLLIPOP = [CIRCLE, SPIRAL, [(160, 165 + 12 * step) for step in range(12)]]


def examples(typed: list[str]) -> dict[str, object]:
    """Real drawings in the page's export format."""
    data, _ = metadraw.build(metadraw.compose(*typed))
    assert set(CLASSES) <= set(data.splits["test"])
    classes = []
    for name in CLASSES:
        drawings = data.drawings.images[data.drawings.classes.index(name)][:SHOTS]
        urls = []
        for drawing in drawings:
            stream = io.BytesIO()
            Image.fromarray(255 - drawing).save(stream, "PNG")
            urls.append("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())
        classes.append({"name": name, "examples": urls})
    return {"classes": classes}


def chrome() -> webdriver.Chrome:
    """A headless browser with the window size of a desktop."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless", "no-sandbox", "disable-gpu", "window-size=1000,1110"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def draw(browser: webdriver.Chrome, strokes: list[list[tuple[float, float]]]) -> None:
    """Draw by mouse, 20 ms from point to point; points are in 320ths of the drawing area."""
    pad = browser.find_element(By.ID, "pad")
    side = pad.size["width"]
    for stroke in strokes:
        chain = ActionChains(browser, duration=20)
        for number, (x, y) in enumerate(stroke):
            there = (int(x / 320 * side - side / 2), int(y / 320 * side - side / 2))
            chain.move_to_element_with_offset(pad, *there)
            if not number:
                chain.click_and_hold()
        chain.release().perform()


def main() -> None:
    """Serve, draw, and write the measurements."""
    typed = sys.argv[1:]
    exported = json.dumps(examples(typed))
    command = [sys.executable, "demo.py", f"ckpt_path={CHECKPOINT}", "port=0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    browser = chrome()
    try:
        assert server.stdout is not None
        said = next(line for line in server.stdout if "draw on http" in line)
        browser.get(said.partition("draw on ")[2].split()[0])
        empty = WebDriverWait(browser, 30).until(lambda b: b.find_element(By.ID, "empty"))
        browser.execute_script(
            "window.seen = []; new MutationObserver(() => seen.push(Number("
            "document.body.dataset.latency))).observe(document.body, "
            "{attributes: true, attributeFilter: ['data-latency']})"
        )
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(exported)
            file.flush()
            adapted = []
            for _ in range(6):
                empty.click()
                WebDriverWait(browser, 30, 0.05).until(
                    lambda b: "none yet" in b.find_element(By.ID, "status").text
                )
                browser.find_element(By.ID, "import").send_keys(file.name)
                said = WebDriverWait(browser, 30, 0.05).until(
                    lambda b: (
                        (t := b.find_element(By.ID, "status").text).startswith("Adapted") and t
                    )
                )
                adapted.append(float(said.partition(" in ")[2].partition(" ms")[0]))
        for _ in range(3):
            browser.find_element(By.ID, "clear").click()
            draw(browser, LOLLIPOP)
        time.sleep(1)
        browser.save_screenshot(str(PICTURE))
        seen = sorted(browser.execute_script("return seen"))
    finally:
        browser.quit()
        server.terminate()
    text = "\n".join(
        [
            "# page",
            "",
            f"`python benchmarks/page.py {' '.join(typed)}`: demo.py with {CHECKPOINT} in headless "
            "Chromium on 2 CPU cores, both on the same machine.",
            "",
            "| what | times | median (ms) | 95 % below (ms) | longest (ms) |",
            "| --- | ---: | ---: | ---: | ---: |",
            row("stroke to probabilities on the page, while drawing", seen),
            # The first one compiles and allocates.
            row(f"adapting to {len(CLASSES)} classes, {SHOTS} examples each", sorted(adapted[1:])),
            "",
        ]
    )
    OUT.write_text(text, encoding="utf-8")
    print(text)


def row(what: str, times: list[float]) -> str:
    """A row of the table, of times in ascending order."""
    high = times[math.ceil(0.95 * len(times)) - 1]
    return (
        f"| {what} | {len(times)} | {statistics.median(times):.0f} | {high:.0f} | {times[-1]:.0f} |"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
