"""Reports what is longer than we aim for: `make lengths`. A question, never a failure."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE_AIM, FUNCTION_AIM, CLASS_AIM = 400, 40, 12
Function = ast.FunctionDef | ast.AsyncFunctionDef


def body_length(function: Function) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def report(path: Path) -> Iterator[str]:
    """One line for each thing in a file that is over its aim."""
    text = path.read_text()
    place = path.relative_to(ROOT)
    if (n_lines := len(text.splitlines())) > FILE_AIM:
        yield f"{place}: {n_lines} lines (aim {FILE_AIM})"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function) and (n_lines := body_length(node)) > FUNCTION_AIM:
            yield f"{place}:{node.lineno} {node.name}: {n_lines} lines (aim {FUNCTION_AIM})"
        if isinstance(node, ast.ClassDef):
            n_methods = sum(isinstance(child, Function) for child in node.body)
            if n_methods > CLASS_AIM:
                yield f"{place}:{node.lineno} {node.name}: {n_methods} methods (aim {CLASS_AIM})"


if __name__ == "__main__":
    for folder in ("workbench", "probes", "app"):
        for source in sorted((ROOT / folder).rglob("*.py")):
            sys.stdout.writelines(f"{line}\n" for line in report(source))
