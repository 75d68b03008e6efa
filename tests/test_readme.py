"""The README's ten lines run, and print what it says they print."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_ten_lines_print_what_the_readme_says():
    blocks = re.findall(r"```(python|text)\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    kinds = [kind for kind, _ in blocks]
    at = kinds.index("python")
    assert kinds[at + 1] == "text", "the first python block is followed by its output"
    code, expected = blocks[at][1], blocks[at + 1][1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().strip() == expected.strip()


def test_the_annotated_tree_names_what_is_there():
    tree = re.search(r"```\n(workbench/.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert tree, "an annotated tree of the package"
    folder = ""
    for line in tree[1].splitlines():
        name = line.split()[0] if line.strip() else ""
        if not name:
            continue
        if not line.startswith(" "):
            folder = name
            assert (README.parent / name).exists(), name
        elif name.endswith((".py", "/")):
            assert (README.parent / folder / name).exists(), f"{folder}{name}"
