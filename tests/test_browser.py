"""TensorBoard in a real browser: what a bench writes arrives on the screen.

Needs selenium, and Chromium with its driver. SEQZOO_SCREENSHOTS=DIR keeps what was seen;
SEQZOO_RUNS=DIR looks at those runs instead of making a bench.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seqzoo.bench.figures import PANELS

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-sync "
    "--no-first-run --window-size=1500,1150"
)
TEXT = """
const out = [];
(function walk(node) {
  if (node.nodeType === Node.TEXT_NODE) out.push(node.textContent);
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) walk(child);
})(document.body);
return out.join("\\n");
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("SEQZOO_RUNS"):
        return Path(given)
    folder = tmp_path_factory.mktemp("runs")
    small = "bench.lengths=[16,32,64] bench.parameters=20000 bench.rounds=1 bench.seconds=0.01"
    command = [sys.executable, "-m", "seqzoo", "bench", "models=[lstm,transformer]", *small.split()]
    subprocess.run([*command, f"hydra.run.dir={folder}/bench/a"], check=True)
    return folder


@pytest.fixture(scope="module")
def links(runs: Path) -> Iterator[dict[str, str]]:
    """What `seqzoo dashboard` prints, while it runs."""
    command = [
        sys.executable,
        "-m",
        "seqzoo",
        "dashboard",
        str(runs),
        "--port",
        "0",
        "--no-browser",
    ]
    board = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert board.stdout is not None
    found = {}
    for line in board.stdout:
        if match := re.match(r"  (.+?)\s+(http\S+)", line):
            found[match[1]] = match[2]
        if "Ctrl-C" in line:
            break
    yield found
    board.terminate()
    board.wait()
    board.stdout.close()


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if CHROMIUM is None or driver is None:
        pytest.skip("needs Chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def wait_for(browser: Any, *texts: str, seconds: float = 90) -> str:
    """What is on the screen, once it has all the texts."""
    end = time.monotonic() + seconds
    while True:
        seen = str(browser.execute_script(TEXT))
        if all(text in seen for text in texts):
            return seen
        missing = [text for text in texts if text not in seen]
        assert time.monotonic() < end, f"{missing} not on the screen:\n{seen[:2000]}"
        time.sleep(0.5)


def keep(browser: Any, name: str) -> None:
    if folder := os.environ.get("SEQZOO_SCREENSHOTS"):
        time.sleep(5)  # until the curves are drawn
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_bench_view_shows_every_family_in_one_chart(browser: Any, links: dict[str, str]) -> None:
    assert next(iter(links)) == "bench"
    browser.get(links["bench"])
    wait_for(
        browser, "against sequence length", *(f"{panel.name}, {panel.unit}" for panel in PANELS)
    )
    keep(browser, "dashboard")


def test_scalars_arrive(browser: Any, links: dict[str, str]) -> None:
    browser.get(links["throughput"])
    wait_for(browser, "train_tokens_per_second", "decode_ms_per_token")
    keep(browser, "throughput")
