"""What a file of Python means, read off its syntax tree: a digest, what it imports, and what a package passes on."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# what is asked of a module: a name in it, all of it, or only that it runs because it is the package around another
ALL, AROUND = "*", ""
Asked = tuple[str, str]
# fields without a meaning of their own: whether a name is read or written follows from where it stands
_FORMATTING = frozenset({"ctx", "kind"})
_READ_DOCS = ("__doc__", "getdoc", "getsource", "getcomments")
_LITERAL = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.unaryop, ast.expr_context, ast.Call)
_BUILDERS = ("dict", "dict.fromkeys", "frozenset", "list", "set", "tuple")


@dataclass(frozen=True)
class Code:
    """One file of code.

    Attributes:
        digest: of its meaning, see :func:`tree_digest`.
        text: SHA-256, hex, of its bytes.
        reads_docs: whether it asks for docstrings or source, which decide what it does then.
        imports: what it asks of which modules. What only type checkers import is left out, except in a package with a
            ``__getattr__``, which imports those names when they are asked for.
        face: of a package's ``__init__`` that binds names and does nothing else, where each name comes from; None for
            other files.
    """

    digest: str
    text: str
    reads_docs: bool = False
    imports: tuple[Asked, ...] = ()
    face: dict[str, Asked] | None = None


def read_code(content: bytes, package: str, is_package: bool) -> Code:
    """Reads a file of a package.

    Raises:
        SyntaxError, ValueError, RecursionError: it is not valid Python, or nested too deeply.
    """
    tree = ast.parse(content)
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
    statements = _statements(tree.body, for_types=is_package and lazy)
    imports = dict.fromkeys(asked for node in statements for asked in _bound(node, package).values())
    reads_docs = any(word.encode() in content for word in _READ_DOCS) and any(map(_reads_docs, ast.walk(tree)))
    face = _face(tree, package) if is_package else None
    return Code(tree_digest(tree), hashlib.sha256(content).hexdigest(), reads_docs, tuple(imports), face)


def tree_digest(tree: ast.AST) -> str:
    """SHA-256, hex, of a syntax tree without comments, formatting, docstrings and other statements that do nothing.

    The version of Python is no part of it: the same code on the same packages has the same results. Fields that are
    empty are left out, because newer versions add them to the trees of older code, and so are the empty parts of
    f-strings that Python 3.12 adds. Where a version parses code in another way, the digest differs there, and what the
    code made is made again.
    """
    parts: list[str] = []
    _describe(tree, parts.append)
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _describe(node: ast.AST, add: Callable[[str], None]) -> None:
    """Adds a tree's parts in order; nodes and lists are closed, so that no two trees have the same parts."""
    add(type(node).__name__)
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or value == [] or name in _FORMATTING:
            continue
        add(name)
        if isinstance(value, ast.AST):
            _describe(value, add)
        elif isinstance(value, list):
            for item in value:
                if not isinstance(item, ast.AST):
                    add(repr(item))
                elif not (_does_nothing(item) or (isinstance(node, ast.JoinedStr) and _is_empty(item))):
                    _describe(item, add)
            add("]")
        else:
            add(repr(value))
    add(")")


def _does_nothing(node: ast.AST) -> bool:
    """Whether it is a constant alone: a docstring, or a string where a comment could stand."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_empty(node: ast.AST) -> bool:
    """Whether it is an empty string."""
    return isinstance(node, ast.Constant) and node.value == ""


def _reads_docs(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):  # getattr(x, "__doc__")
        return any(isinstance(arg, ast.Constant) and arg.value in _READ_DOCS for arg in node.args)
    name = getattr(node, "attr", None) or getattr(node, "id", None)
    return (node.name if isinstance(node, ast.alias) else name) in _READ_DOCS


def _statements(body: list[ast.stmt], for_types: bool) -> Iterator[ast.stmt]:
    """The statements of a block and of the blocks within it, those for type checkers only if asked for."""
    for node in body:
        yield node
        blocks = [*getattr(node, "handlers", ()), *getattr(node, "cases", ())]
        for block in (node, *blocks):
            if for_types or not _is_for_types(block):
                yield from _statements(getattr(block, "body", []), for_types)
        yield from _statements(getattr(node, "orelse", []), for_types)
        yield from _statements(getattr(node, "finalbody", []), for_types)


def _is_for_types(node: ast.AST) -> bool:
    """Whether it is ``if TYPE_CHECKING:``."""
    test = getattr(node, "test", None)
    return isinstance(node, ast.If) and "TYPE_CHECKING" in (getattr(test, "id", None), getattr(test, "attr", None))


def _bound(node: ast.stmt, package: str) -> dict[str, Asked]:
    """The names that a statement binds by an import, and what each asks for. A module may stand for a name in it."""
    found: dict[str, Asked] = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            found[alias.asname or alias.name] = (alias.name, ALL)
            if alias.asname is None:  # ``import a.b`` binds ``a``, all of it
                around = alias.name.split(".")
                found |= {n: (n, ALL) for n in (".".join(around[:k]) for k in range(1, len(around)))}
    elif isinstance(node, ast.ImportFrom):
        names = package.split(".")
        around = names[: len(names) + 1 - node.level] if node.level else []
        base = ".".join(filter(None, [*around, node.module or ""]))
        if base and (around or not node.level):
            found = {alias.asname or alias.name: (base, alias.name) for alias in node.names}
    return found


def _face(tree: ast.Module, package: str) -> dict[str, Asked] | None:
    """Where the names come from that an ``__init__`` imports; None if it may do more than bind names.

    An import counts as one that is there for what it does, not for its name, if the name is neither used in the file
    nor in ``__all__``.
    """
    found: dict[str, Asked] = {}
    for node in tree.body:
        if _is_for_types(node):
            for inner in ast.walk(node):
                found |= _bound(inner, package) if isinstance(inner, ast.stmt) else {}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= _bound(node, package)
        elif not _binds_only(node):
            return None
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | _listed(tree)
    names = {name for name, (module, _) in found.items() if module != "__future__"}
    return found if ALL not in names and {name.partition(".")[0] for name in names} <= used else None


def _binds_only(node: ast.stmt) -> bool:
    """Whether a statement binds names to literals, or containers of them, or to a function, or does nothing."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return not node.decorator_list
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return _is_literal(node.value) and all(isinstance(target, ast.Name) for target in targets)
    return _does_nothing(node) or isinstance(node, ast.Pass)


def _is_literal(value: ast.expr | None) -> bool:
    """Whether a value is made of literals alone; Python's own containers may be called."""
    parts = [] if value is None else list(ast.walk(value))
    called = [part.func for part in parts if isinstance(part, ast.Call) and ast.unparse(part.func) in _BUILDERS]
    named = {id(part) for func in called for part in ast.walk(func)}
    calls = sum(isinstance(part, ast.Call) for part in parts)
    return len(called) == calls and all(isinstance(part, _LITERAL) or id(part) in named for part in parts)


def _listed(tree: ast.Module) -> set[str]:
    """The names in ``__all__``."""
    lists = (node.value for node in tree.body if isinstance(node, ast.Assign) and _assigns_all(node))
    return {str(part.value) for one in lists for part in ast.walk(one) if isinstance(part, ast.Constant)}


def _assigns_all(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
