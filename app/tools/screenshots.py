"""Pictures of every page, light and dark, wide and narrow.

`python -m app.tools.screenshots FOLDER [PAGE ...]`
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from playwright.sync_api import Browser, sync_playwright

from app.process import pages
from app.tools.browse import browser, serving, settle

SIZES: Final = {"wide": (1280, 800), "narrow": (390, 844)}
THEMES: Final = ("light", "dark")


def take(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Saves a picture of the first view and of the whole page, for each page, theme and size."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(names) or sorted(pages(), key=lambda name: pages()[name].order)
    taken: list[Path] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Path(scratch) / "app.log") as address,
        sync_playwright() as playwright,
    ):
        chrome = browser(playwright)
        for theme in THEMES:
            for size, (width, height) in SIZES.items():
                for name in wanted:
                    files = (
                        folder / f"{name}-{theme}-{size}.png",
                        folder / f"{name}-{theme}-{size}-whole.png",
                    )
                    _shoot(chrome, _address(address, name), name, theme, (width, height), files)
                    taken += files
        chrome.close()
    return taken


def _address(address: str, name: str) -> str:
    first = min(pages(), key=lambda page: (pages()[page].order, page))
    return f"{address}/" if name == first else f"{address}/{name}"


def _shoot(
    chrome: Browser,
    address: str,
    name: str,
    theme: str,
    size: tuple[int, int],
    files: tuple[Path, Path],
) -> None:
    context = chrome.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if theme == "dark" else "light",
        device_scale_factor=1 if size[0] > 1000 else 2,
    )
    page = context.new_page()
    page.goto(address)
    settle(page, name)
    page.screenshot(path=files[0])
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": size[0], "height": max(size[1], int(height) + 60)})
    page.wait_for_timeout(600)
    page.screenshot(path=files[1])
    context.close()


def main(folder: Path, names: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Saves pictures of every page, or of those named, to a folder.

    Raises:
        BadParameter: If there is no such page.
    """
    strange = sorted(set(names or ()) - set(pages()))
    if strange:
        raise typer.BadParameter(f"no page {strange[0]}; one of {', '.join(pages())}")
    for file in take(folder, names or ()):
        sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    typer.run(main)
