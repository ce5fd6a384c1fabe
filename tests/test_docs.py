"""Every Python block of the README runs."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_blocks():
    assert len(BLOCKS) >= 7


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {README[:README.index(block)].count(chr(10)) + 1}")
def test_block_runs(block):
    exec(compile(block, "README.md", "exec"), {})
