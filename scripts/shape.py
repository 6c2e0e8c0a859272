"""Keep files and functions small, and tests able to fail.

A file has at most 600 lines (tests of one subject may take 800), a function at most 70 lines of code (no blank lines,
comments or docstring), and every test file asserts something.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_FILE_LINES = 600
MOST_TEST_FILE_LINES = 800
MOST_FUNCTION_LINES = 70
ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "core", "scripts", "examples", "bench", "tests")
PYTHON_CHECKS = {"raises", "warns", "fail"}
CORE_CHECK = re.compile(r"\b(assert|CHECK\w*|EXPECT\w*|REQUIRE\w*)\s*\(|\babort\(\)|std::exit")
NOT_A_FUNCTION = re.compile(r"(namespace|struct|class|enum|union)\b|void register_")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_files() -> list[Path]:
    """The tracked and new source files, those that git ignores left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *FOLDERS]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    paths = (ROOT / name for name in sorted(set(names)))
    return [path for path in paths if path.suffix in {".py", ".cpp", ".h"} and path.exists()]


def code_lines(function: Function, lines: list[str]) -> int:
    """Lines of a function that hold code."""
    first = function.body[0]
    docstring: set[int] = set()
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        docstring = set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    inside = range(function.lineno, (function.end_lineno or function.lineno) + 1)
    texts = (lines[number - 1].strip() for number in inside if number not in docstring)
    return sum(1 for text in texts if text and not text.startswith("#"))


def long_python_functions(tree: ast.Module, lines: list[str]) -> Iterator[str]:
    """A complaint about each function that is too long."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and (count := code_lines(node, lines)) > MOST_FUNCTION_LINES:
            yield f"{node.lineno}: {node.name} has {count} lines of code; at most {MOST_FUNCTION_LINES}"


def long_core_functions(lines: list[str]) -> Iterator[str]:
    """The same for C++ as clang-format lays it out: a function begins and ends in the first column.

    A ``register_...`` is a table of bindings that happens to be written as a function; it may be long.
    """
    start, count = None, 0
    for number, line in enumerate(lines, start=1):
        if line[:1].isalpha() and line.endswith("{") and not NOT_A_FUNCTION.match(line):
            start, count = number, 0
        elif start is not None and line.startswith("}"):
            if count > MOST_FUNCTION_LINES:
                yield f"{start}: the function has {count} lines of code; at most {MOST_FUNCTION_LINES}"
            start = None
        elif line.strip() and not line.strip().startswith("//"):
            count += 1


def asserts_something(tree: ast.Module) -> bool:
    """Whether any code in the file can fail a test, or it takes over a suite that can (``class TestX(Suite)``)."""
    if any(isinstance(node, ast.ClassDef) and node.name.startswith("Test") and node.bases for node in tree.body):
        return True
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    checked = any(isinstance(call, ast.Attribute) and call.attr in PYTHON_CHECKS for call in calls)
    return checked or any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def complaints(path: Path) -> Iterator[str]:
    """Everything wrong with one file's shape."""
    text = path.read_text()
    lines = text.splitlines()
    most_lines = MOST_TEST_FILE_LINES if path.is_relative_to(ROOT / "tests") else MOST_FILE_LINES
    if len(lines) > most_lines:
        yield f"1: the file has {len(lines)} lines; at most {most_lines}"
    if path.suffix == ".py":
        tree = ast.parse(text)
        yield from long_python_functions(tree, lines)
        if path.name.startswith("test_") and not asserts_something(tree):
            yield "1: a test file that asserts nothing"
    else:
        yield from long_core_functions(lines)
        if path.name.endswith("_test.cpp") and not CORE_CHECK.search(text):
            yield "1: a test file that asserts nothing"


def main() -> int:
    """Print every complaint; 1 if there is one."""
    files = source_files()
    found = [f"{path.relative_to(ROOT)}:{text}" for path in files for text in complaints(path)]
    print("\n".join(found) if found else f"{len(files)} files are in shape")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
