"""Every Python block of the README and of docs/ runs; no link or picture leads nowhere; pages stay short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(page, match) for page in PAGES for match in re.finditer(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
OWN = [page for page in PAGES if page.name not in ("README.md", "migrating.md")]


def place(value):
    """``page:line`` of a block, as its test's name."""
    page, match = value
    return f"{page.name}:{page.read_text().count(chr(10), 0, match.start()) + 1}"


def test_there_are_blocks():
    assert sum(page.name == "README.md" for page, _ in BLOCKS) >= 7
    assert len(BLOCKS) >= 30


@pytest.mark.parametrize("block", BLOCKS, ids=place)
def test_block_runs(block):
    page, match = block
    try:
        exec(compile(match[1], page.name, "exec"), {"__name__": "__main__"})
    except ModuleNotFoundError as error:
        if error.name.startswith("xlstm_fused"):
            raise
        pytest.skip(f"this block is about {error.name}, which is not installed")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", OWN, ids=lambda page: page.name)
def test_pages_are_short(page):
    assert page.read_text().count("\n") < 120


def test_every_picture_is_made_by_the_script():
    script = (ROOT / "docs" / "images" / "make.py").read_text()
    for picture in (ROOT / "docs" / "images").glob("*.png"):
        assert picture.stem in script, picture.name
