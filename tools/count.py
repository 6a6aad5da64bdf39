"""Counts what a stranger stumbles over: `python -m tools.count` prints them beside their limits.

Lines are all lines of Python files. A closure is everything that is imported from a start, at
import time or inside functions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = ("service", "jobs", "worker", "models", "cli", "client", "training", "evaluation")
# Past participles without the ending -ed, and words with it that are none.
IRREGULAR = frozenset(
    re.findall(
        r"\w+",
        "begun bound bought brought built chosen cut done drawn found given gone gotten grown held "
        "kept known laid left lent lost made meant met paid put read risen run said seen sent set "
        "shown shut sold spent split spoken sunk taken taught thought told understood won written",
    )
)
NOUNS = frozenset(
    re.findall(
        r"\w+",
        "bed breed cut embed feed hundred left need put read red run seed set shed speed split "
        "thread",
    )
)
VAGUE = re.compile(r"\b(nobody|somebody|whoever)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Module:
    """One Python file."""

    name: str
    path: Path
    source: str

    @property
    def lines(self) -> int:
        return self.source.count("\n")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


def modules(folders: Iterable[str]) -> dict[str, Module]:
    """Those below the folders, by dotted name."""
    result = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            # The client is a distribution of its own, one folder deeper.
            parts = parts[1:] if parts[:2] == ("client", "stablesr_client") else parts
            name = ".".join(parts).removesuffix(".__init__")
            result[name] = Module(name, path, path.read_text("utf-8"))
    return result


def imports(module: Module, all_modules: dict[str, Module]) -> set[str]:
    """Modules of ours that this one imports."""
    names = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.name.split(".")
            if module.path.name != "__init__.py":
                package = package[:-1]
            package = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            names.add(base)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name in all_modules} - {module.name}


def closure(start: Iterable[str], graph: dict[str, set[str]]) -> set[str]:
    """The names in the graph that are reached from some, these among them."""
    result: set[str] = set()
    queue = list(start)
    while queue:
        name = queue.pop()
        if name not in result:
            result.add(name)
            queue += graph[name]
    return result


def circles(graph: dict[str, set[str]]) -> int:
    """Modules that reach themselves."""
    return sum(name in closure(graph[name], graph) for name in graph)


def floors(graph: dict[str, set[str]]) -> int:
    """Parts on the longest chain of imports; circles count once."""
    height: dict[str, int] = {}

    def above(name: str, path: tuple[str, ...]) -> int:
        if name in path:
            return 0
        if name not in height:
            below = (above(other, (*path, name)) for other in graph[name])
            height[name] = 1 + max(below, default=0)
        return height[name]

    return max((above(name, ()) for name in graph), default=0)


def bound_names(module: Module) -> Iterator[str]:
    """Every name that is assigned, declared as an argument, defined, or a field."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def is_participle(name: str) -> bool:
    word = name.strip("_").lower()
    if word in NOUNS:
        return False
    return word in IRREGULAR or re.fullmatch(r"[a-z]{2,}ed", word) is not None


def settings() -> int:
    """Fields of the class that reads the environment."""
    tree = ast.parse((ROOT / "jobs" / "settings.py").read_text("utf-8"))
    return sum(
        isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        for node in ast.walk(tree)
        if not (isinstance(node, ast.AnnAssign) and "ClassVar" in ast.dump(node.annotation))
    )


def without_mirror() -> list[str]:
    """Test files without a file or folder of the product that they are named after."""
    wrong = []
    for folder in PRODUCT:
        for path in sorted((ROOT / "tests" / folder).rglob("test_*.py")):
            below = path.relative_to(ROOT / "tests" / folder)
            base = ROOT / folder
            base = base / "stablesr_client" if (base / "stablesr_client").is_dir() else base
            place = base / below.parent / below.stem.removeprefix("test_")
            if not place.with_suffix(".py").exists() and not place.is_dir():
                wrong.append(str(path.relative_to(ROOT)))
    return wrong


@dataclass(frozen=True)
class Count:
    """One line of the table; None: there is no limit."""

    what: str
    value: float
    limit: float | None = None


def counts() -> list[Count]:
    """The table."""
    product = modules(PRODUCT)
    graph = {name: imports(module, product) for name, module in product.items()}
    files = [module for module in product.values() if module.lines]
    sizes = [m.lines for m in files if m.path.name not in ("__init__.py", "__main__.py")]
    start = [name for name in product if name.split(".")[0] in ("service", "worker")]
    runtime = closure(start, graph)
    of_models: dict[str, set[str]] = {}
    for name in graph:
        if name.startswith("models."):
            part = _part(name)
            others = {_part(n) for n in graph[name] if n.startswith("models.")} - {part}
            of_models[part] = of_models.get(part, set()) | others
    names = [name for module in files for name in bound_names(module)]
    participles = sum(map(is_participle, names))
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    texts = [m.source for m in files] + [path.read_text("utf-8") for path in documents]
    vague = sum(VAGUE.search(line) is not None for text in texts for line in text.splitlines())
    # Bars of tables and marks of lists are none.
    words = sum(len(re.findall(r"\S*\w\S*", path.read_text("utf-8"))) for path in documents)
    tests = list((ROOT / "tests").rglob("*.py"))
    return [
        Count("product lines", sum(m.lines for m in files), 24_000),
        Count("product files", len(files), 170),
        Count(
            "lines that service and worker import", sum(product[n].lines for n in runtime), 14_500
        ),
        Count("files that service and worker import", len(runtime)),
        Count("files under 60 lines", sum(size < 60 for size in sizes)),
        Count("files over 400 lines", sum(size > 400 for size in sizes)),
        Count("floors of models/", floors(of_models), 7),
        Count("modules in import circles", circles(graph), 0),
        Count("settings", settings(), 35),
        Count("participles as names, per cent", round(100 * participles / len(names), 2), 0.5),
        Count("lines with nobody, somebody, whoever", vague, 0),
        Count("benchmarks", len(_commands()), 6),
        Count("words of documents", words, 10_000),
        Count("test lines", sum(path.read_text("utf-8").count("\n") for path in tests)),
        Count("test files that mirror nothing", len(without_mirror()), 0),
    ]


def main() -> None:
    """Prints the table."""
    for count in counts():
        limit = "" if count.limit is None else f"{count.limit:g}"
        print(f"{count.what:40}{count.value:>10g}{limit:>10}")


def _part(name: str) -> str:
    """The file or folder of models/ that a module is or lies in."""
    return ".".join(name.split(".")[:2])


def _commands() -> list[Path]:
    paths = (ROOT / "benchmarks").glob("*.py")
    return [path for path in paths if 'if __name__ == "__main__"' in path.read_text("utf-8")]


if __name__ == "__main__":
    main()
