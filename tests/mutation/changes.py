"""What can be changed in a module, and how a change is put into the running one.

mutmut says what to change. Its own way to run a change, a wrapper around each function, does not
fit here: this package looks at the frames of its callers. So a changed function is given to the
interpreter as what it is, other code for the same function object; nothing is imported anew.
"""

import ast
import gc
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import libcst
from libcst._nodes.internal import CodegenState
from mutmut.mutation.file_mutation import create_mutations

ROOT = Path(__file__).resolve().parents[2]


@cache
def source_of(module: str) -> str:
    """Return the text of a module as it was loaded: the file may be edited meanwhile."""
    return path_of(module).read_text()


@cache
def compiled(module: str) -> CodeType:
    """Return the code of a module as it was loaded."""
    return compile(source_of(module), str(path_of(module)), "exec")


class Mutant(NamedTuple):
    """One change of one function."""

    module: str
    function: str
    line: int
    statement: range  # the lines that a tracer may see for it
    change: str
    source: str  # of the whole module

    @property
    def key(self) -> str:
        """What names it as long as its line stays as it is, wherever that goes."""
        return f"{self.module}.{self.function}: {self.change}"


def path_of(module: str) -> Path:
    """Return the file of a module of the package."""
    return ROOT / "deferred" / f"{module}.py"


def mutants(module: str) -> Iterator[Mutant]:
    """Give every change of this module's functions that changes what they do."""
    path, text = path_of(module), source_of(module)
    tree, found, _, _ = create_mutations(str(path), text)
    lines, parsed = text.splitlines(), ast.parse(text)
    depths = {node: depth for depth, body in _bodies(tree) for node in body}
    for mutation in found:
        function = mutation.contained_by_top_level_function
        if not isinstance(function, libcst.FunctionDef) or _is_prose(mutation.original_node):
            continue
        before = _text(tree, function, depths[function])
        if text.count(before) != 1:
            raise LookupError(f"{function.name.value} of {module} was not found in its file")
        changed: Any = function.deep_replace(mutation.original_node, mutation.mutated_node)
        source = text.replace(before, _text(tree, changed, depths[function]))
        try:
            if compile(source, str(path), "exec") == compiled(module):
                continue  # the same to the compiler
        except SyntaxError:
            continue
        new = source.splitlines()
        line = next(n for n, (a, b) in enumerate(zip([*lines, ""], [*new, ""], strict=False), 1) if a != b)
        change = f"{lines[line - 1].strip()} -> {new[line - 1].strip()}"
        name, statement = _place(parsed, line)
        yield Mutant(module, name, line, statement, change, source)


def _bodies(tree: libcst.Module) -> Iterator[tuple[int, Any]]:
    """Give the module's statements, and those of its classes, with how far they are indented."""
    yield 0, tree.body
    for node in tree.body:
        if isinstance(node, libcst.ClassDef):
            yield 1, node.body.body


def _text(tree: libcst.Module, function: libcst.FunctionDef, depth: int) -> str:
    """Return the text of a function as it stands in its file."""
    state = CodegenState(default_indent=tree.default_indent, default_newline=tree.default_newline)
    for _ in range(depth):
        state.increase_indent(tree.default_indent)
    function._codegen(state)
    return "".join(state.tokens)


def _is_prose(node: libcst.CSTNode) -> bool:
    """Say whether it is a text for people: tests look for what matters in it, not for each letter."""
    if isinstance(node, libcst.SimpleString):
        return any(letter.isspace() for letter in node.value)
    return isinstance(node, libcst.FormattedString | libcst.ConcatenatedString)


def _place(tree: ast.Module, line: int) -> tuple[str, range]:
    """Return the qualified name of the function around a line, and the lines of its statement."""
    names: list[str] = []
    body: list[ast.stmt] = tree.body
    while True:
        for node in body:
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
            if first <= line <= (node.end_lineno or first):
                break
        else:
            raise LookupError(f"no statement on line {line}")
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.excepthandler | ast.match_case)]
        blocks = [getattr(node, name, None) or [] for name in ("body", "orelse", "finalbody")]
        blocks += [child.body for child in inner]
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(node.name)
        around = [block for block in blocks if block and block[0].lineno <= line <= (block[-1].end_lineno or 0)]
        if not around:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                return ".".join(names), range(first, (node.end_lineno or first) + 1)  # a default: whoever calls it
            starts = [block[0].lineno for block in blocks if block and block[0].lineno > line]
            last = min(starts) - 1 if starts else node.end_lineno or first
            return ".".join(names), range(first, last + 1)
        body = around[0]


def put_in(mutant: Mutant) -> None:
    """Give the functions of this process that are changed their other code."""
    path = path_of(mutant.module)
    functions, module = known_functions(path), sys.modules[f"deferred.{mutant.module}"]
    after = compile(mutant.source, str(path), "exec")
    put = False
    for old, new in zip(_codes(compiled(mutant.module)), _codes(after), strict=True):
        if old == new:
            continue
        for function in functions[old.co_qualname]:
            if function.__code__ == old:
                for name, value in vars(module).items():
                    if isinstance(value, frozenset) and function.__code__ in value:
                        setattr(module, name, value - {function.__code__} | {new})
                function.__code__ = new
                put = True
    # A default stands in the first lines of a function, and is no part of its code.
    for function, defaults in () if put else _new_defaults(mutant, functions):
        function.__defaults__, function.__kwdefaults__ = defaults
        put = True
    if not put:
        raise LookupError(f"nothing to change for {mutant.key}")


_functions: dict[Path, dict[str, list[FunctionType]]] = {}


def known_functions(path: Path) -> dict[str, list[FunctionType]]:
    """Return the functions that were defined in a file, by qualified name; found once."""
    if path not in _functions:
        found = defaultdict(list)
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename == str(path):
                found[thing.__code__.co_qualname].append(thing)
        _functions[path] = found
    return _functions[path]


def _codes(code: CodeType) -> list[CodeType]:
    """Return all code in `code`, but for that of what was made of an expression, in order."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType) and not each.co_name.startswith("<")]
    return [found for each in inner for found in (each, *_codes(each))]


def _new_defaults(mutant: Mutant, functions: dict[str, list[FunctionType]]) -> Iterator[tuple[FunctionType, Any]]:
    """Give each function whose defaults are changed, with the new ones."""
    before, after = (_signatures(ast.parse(text)) for text in (source_of(mutant.module), mutant.source))
    for name, (old, new) in zip((name for name, _ in before), zip(before, after, strict=True), strict=True):
        if ast.dump(old[1]) != ast.dump(new[1]):
            value = partial(_value, scope=vars(sys.modules[f"deferred.{mutant.module}"]))
            pairs = zip(new[1].kwonlyargs, new[1].kw_defaults, strict=True)
            named = {argument.arg: value(default) for argument, default in pairs if default is not None}
            for function in functions[name]:
                yield function, (tuple(map(value, new[1].defaults)) or None, named or None)


def _value(node: ast.expr, scope: dict[str, Any]) -> Any:
    return eval(ast.unparse(node), scope)


def _signatures(tree: ast.AST, name: str = "") -> list[tuple[str, ast.arguments]]:
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((name + node.name, node.args))
        elif isinstance(node, ast.ClassDef):
            found += _signatures(node, f"{name}{node.name}.")
    return found
