"""Rules that no linter has, held over the source itself."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for folder in ("workbench", "probes", "app") for path in (ROOT / folder).rglob("*.py")
)
HEAVY = ("transformers", "transformer_lens", "streamlit", "plotly", "sklearn", "pandas")

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def is_call(node: ast.AST, *names: str) -> bool:
    """Whether a node calls one of the builtins."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def is_method_call(node: ast.AST, pattern: str) -> bool:
    """Whether a node calls a method whose name matches."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and re.fullmatch(pattern, node.func.attr) is not None
    )


def sets_attribute(node: ast.AST, name: str) -> bool:
    """Whether a node assigns to an attribute of that name."""
    return isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store)


# What is forbidden, why, how it is seen, and the files that may.
RULES: dict[str, tuple[str, Callable[[ast.AST], bool], tuple[str, ...]]] = {
    "hooks on modules": (
        "a model never changes, and threads share it: pass a tap",
        lambda node: is_method_call(node, r"register_(\w+_)?hook"),
        (),
    ),
    "backward": (
        "it adds into the shared .grad: use torch.autograd.grad",
        lambda node: is_method_call(node, "backward"),
        (),
    ),
    "keyword sinks": (
        "a misspelt argument must be a TypeError: name the options",
        lambda node: isinstance(node, Function) and node.args.kwarg is not None,
        ("workbench/models/bridged_step.py",),  # a block's own caller is transformers
    ),
    "hasattr": (
        "it asks what a thing looks like, not what it is: use a type or a protocol",
        lambda node: is_call(node, "hasattr"),
        (),
    ),
    "attributes by string": (
        "neither a reader nor a type checker can follow it",
        lambda node: is_call(node, "getattr", "setattr", "delattr"),
        ("workbench/core/registry.py",),
    ),
    "a tokenizer's padding side": (
        "threads share the tokenizer: padding is an argument of run",
        lambda node: sets_attribute(node, "padding_side"),
        (),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_no_source_file_breaks(rule: str) -> None:
    reason, breaks, may = RULES[rule]
    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in SOURCES
        if path.relative_to(ROOT).as_posix() not in may
        for node in ast.walk(ast.parse(path.read_text()))
        if breaks(node)
    ]
    assert not found, f"{rule} ({reason}): {', '.join(found)}"


def tells_families_apart(node: ast.AST) -> bool:
    """Whether a node compares a config's model type with something, but for None and tables."""
    if isinstance(node, ast.Match):
        return is_model_type(node.subject)
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    nothing = any(isinstance(side, ast.Constant) and side.value is None for side in sides)
    within = all(isinstance(one, ast.In) for one in node.ops)
    table = within and not isinstance(node.comparators[-1], ast.Tuple | ast.List | ast.Set)
    return not nothing and not table and any(map(is_model_type, sides))


def is_model_type(node: ast.AST) -> bool:
    """Whether it reads a model type: a name, an attribute, or an entry of a table."""
    match node:
        case ast.Name(id="model_type") | ast.Attribute(attr="model_type"):
            return True
        case ast.Subscript(slice=ast.Constant(value="model_type")):
            return True
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value="model_type"), *_]):
            return True
        case _:
            return False


FAMILIES = ROOT / "workbench" / "models" / "families"


def test_nobody_but_a_family_asks_for_a_model_type() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in SOURCES
        if path.parent != FAMILIES
        for node in ast.walk(ast.parse(path.read_text()))
        if tells_families_apart(node)
    ]
    assert not found, f"what differs between families belongs into their files: {', '.join(found)}"


@pytest.mark.parametrize(
    ("code", "tells"),
    [
        ("if config.model_type == 'llama': pass", True),
        ("if 'bert' != config['model_type']: pass", True),
        ("x = config.get('model_type', '') in ('a', 'b')", True),
        ("match config['model_type']:\n  case 'a': pass", True),
        ("if model_type is None: pass", False),
        ("if model_type in FAMILIES: pass", False),
        ("if model_type not in {'a'}: pass", True),
        ("x = FAMILIES[config['model_type']]", False),
        ("x = {k: v for k, v in config.items() if k != 'model_type'}", False),
    ],
)
def test_what_tells_families_apart_is_seen(code: str, tells: bool) -> None:
    assert any(map(tells_families_apart, ast.walk(ast.parse(code)))) == tells


def public_names(path: Path) -> Iterator[str]:
    """The names that a package's `__init__` binds for its users."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def by_case(name: str) -> tuple[bool, bool, str]:
    """Constants, then types, then the rest, each by alphabet; as ruff sorts them."""
    return not name.isupper(), not name[0].isupper(), name


@pytest.mark.parametrize("package", ["workbench", "probes"])
def test_all_names_what_is_public_in_order(package: str) -> None:
    names = list(importlib.import_module(package).__all__)
    bound = set(public_names(ROOT / package / "__init__.py"))
    bound -= {"package_version"}  # makes __version__
    assert names == sorted(names, key=by_case)
    assert set(names) == {name for name in bound if not name.startswith("_")}


@pytest.mark.parametrize("package", ["workbench", "probes"])
def test_importing_is_light(package: str) -> None:
    code = f"import sys, {package}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], f"import {package} imports {done.stdout}"


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Name and text of every text file under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        try:
            yield name, (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or a file that is being deleted


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of one machine", r"(?<![\w.~/-])/(work|root|opt|mnt)/\w"),
        (
            "a package registry's host",
            r"pypi[.]org|pythonhosted[.]org|download[.]pytorch|index-url",
        ),
        ("the notes outside the repository", r"[.][.]/shared\b"),
    ],
)
def test_tracked_files_do_not_name(what: str, pattern: str) -> None:
    found = [
        f"{name}:{text[: match.start()].count(chr(10)) + 1} {match[0]!r}"
        for name, text in tracked_texts()
        if name != "tests/test_rules.py"
        for match in re.finditer(pattern, text)
    ]
    assert not found, f"{what}: {', '.join(found)}"
