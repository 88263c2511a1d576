"""Make the screenshots of ``docs/`` with Chromium: ``python docs/screenshots.py RUN SWEEP``.

RUN is the folder of a run, with ``quantized/manifest.json``; SWEEP is any folder above several runs. Chromium is found
on PATH or named by ``LQ_CHROMIUM``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lq_plugin.report import manifest, run_page
from lq_plugin.report.leaderboard import leaderboard, save

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
HERE = Path(__file__).parent
PHONE, DESKTOP, SHEET = (360, 1500), (1300, 1700), (794, 1123)  # the last is A4 at 96 pixels an inch
DARK = "--blink-settings=preferredColorScheme=0"
COLOURS = 64  # of a PNG: there is text, lines and one accent


def chromium() -> str | None:
    """Return the path of a browser, if there is one."""
    return os.environ.get("LQ_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def opened(browser: str, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page without a window and return what the browser prints.

    Args:
        browser: its path.
        page: the file.
        options: of Chromium, such as ``--dump-dom``.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
        return subprocess.run(
            [browser, *fixed, f"--user-data-dir={profile}", *options, page.resolve().as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )


def main(run: str, sweep: str) -> None:
    """Make all screenshots.

    Args:
        run: folder of a run.
        sweep: folder above several runs.
    """
    browser = chromium()
    if browser is None:
        sys.exit(f"there is no Chromium: put one of {', '.join(NAMES)} on PATH, or name it in LQ_CHROMIUM")
    with tempfile.TemporaryDirectory() as scratch:
        page, printed = Path(scratch, "report.html"), Path(scratch, "print.html")
        page.write_text(run_page.render(manifest.read(Path(run, "quantized", manifest.FILE))), encoding="utf-8")
        printed.write_text(_as_printed(page.read_text(encoding="utf-8")), encoding="utf-8")
        board = save(leaderboard(sweep), scratch)
        _shoot(browser, page, "report", DESKTOP)
        _shoot(browser, page, "report_dark", DESKTOP, DARK)
        _shoot(browser, page, "report_phone", PHONE)
        _shoot(browser, printed, "report_print", SHEET)
        _shoot(browser, board, "leaderboard", DESKTOP)


def _as_printed(text: str) -> str:
    """The page as it is on paper: on a screen, Chromium has no option for that."""
    text = re.sub("<meta http-equiv[^>]*>", "", text)  # the changed style sheet has another hash
    return text.replace("@media print", "@media all").replace("padding: 0; }", "padding: 14mm; }", 1)


def _shoot(browser: str, page: Path, name: str, size: tuple[int, int], *options: str) -> None:
    from PIL import Image  # not needed to open a page

    target = HERE / f"{name}.png"
    opened(browser, page, f"--window-size={size[0]},{size[1]}", f"--screenshot={target}", *options)
    with Image.open(target) as made:
        made.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
