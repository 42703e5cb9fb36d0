"""The rules of import, read from the syntax trees."""

import ast
import pathlib

import pytest

from dydiff_jax.systems import SYSTEMS

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "dydiff_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

#: What each part may import of the package, besides itself. Imports go one way.
ALLOWED = {
    "types": set(),
    "runs.files": set(),
    "runs.exit_codes": set(),
    "system": {"types"},
    "config": {"system"},
    "diffusion": {"types"},
    "metrics": {"types"},
    "distributed": {"types", "system", "runs.exit_codes"},
    "models": {"types", "system", "distributed"},
    "codecs": {"types", "system"},
    "data": {"types", "system", "runs.files"},
    "systems": {"types", "system", "config", "diffusion", "models", "codecs", "distributed"},
    "training": {"types", "system", "distributed", "runs.files", "runs.exit_codes"},
    "evaluation": {"types", "system", "metrics", "distributed", "data", "runs.files"},
    "build": {
        "types", "system", "config", "codecs", "data", "diffusion", "distributed", "evaluation", "models", "systems",
        "training", "runs.files",
    },
    "cost_model": {"types", "system", "build", "data", "distributed", "models", "training", "runs.files"},
    "runs": {
        "types", "system", "config", "build", "cost_model", "data", "distributed", "evaluation", "metrics", "systems",
        "training", "runs.files",
    },
    "comparison": {"config", "build", "system", "systems", "evaluation", "runs", "runs.files"},
    "export": {"data", "distributed", "runs"},
    "main": {"cost_model", "data", "distributed", "runs"},
    "compare": {
        "comparison", "config", "data", "distributed", "evaluation", "metrics", "runs", "runs.files", "runs.exit_codes",
        "training",
    },
}  # fmt: skip

#: Modules that every part may use, whatever the package they live in.
LEAVES = ("runs.files", "runs.exit_codes")


def part(name: str) -> str:
    """The key in ``ALLOWED`` of a module, by its name in the package: itself if it is a leaf, else the first word."""
    return next((leaf for leaf in LEAVES if f"{name}.".startswith(f"{leaf}.")), name.split(".")[0])


def part_of(path: pathlib.Path) -> str:
    return part(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def imports(tree: ast.AST) -> set[str]:
    """Full names of everything imported, also inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_parts(names: set[str]) -> set[str]:
    return {part(name.removeprefix("dydiff_jax.")) for name in names if name.startswith("dydiff_jax.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    if path == PACKAGE / "__init__.py":
        return
    found = imported_parts(imports(ast.parse(path.read_text()))) - {part_of(path)}
    assert found <= ALLOWED[part_of(path)], f"{path} imports {found - ALLOWED[part_of(path)]}"


def test_the_table_of_imports_has_no_cycle():
    done, rest = set(), dict(ALLOWED)
    while rest:
        free = {name for name, needs in rest.items() if needs <= done}
        assert free, f"a cycle among {sorted(rest)}"
        done |= free
        rest = {name: needs for name, needs in rest.items() if name not in free}


@pytest.mark.parametrize(
    "module, places",
    [
        (
            "ml_collections",
            ("config", "build", "cost_model/plan", "runs/commands", "main", "compare", "export"),
        ),
        ("flax", ("models/", "training/state")),
        ("optax", ("training/",)),
        ("orbax", ("training/checkpoints/", "distributed/collectives.py")),
        ("grain", ("data/",)),
        ("matplotlib", ("evaluation/plots/",)),
    ],
)
def test_outside_libraries_stay_where_they_belong(module, places):
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(f"{name}.".startswith(f"{module}.") for name in imports(ast.parse(path.read_text())))
    ]
    assert found and not [name for name in found if not name.startswith(places)]


def test_diffusion_is_pure_mathematics():
    allowed = {
        "jax",
        "numpy",
        "jaxtyping",
        "dydiff_jax",
        "abc",
        "collections",
        "dataclasses",
        "functools",
        "math",
        "typing",
    }
    for path in (PACKAGE / "diffusion").glob("*.py"):
        roots = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
        assert roots <= allowed, f"{path} imports {roots - allowed}"


def test_nothing_names_this_machine_or_a_registry():
    for path in [*ROOT.rglob("*.py"), ROOT / "constraints.txt", ROOT / "README.md", ROOT / "pyproject.toml"]:
        if ".venv" in path.parts or path == pathlib.Path(__file__):
            continue
        text = path.read_text()
        for word in ("index" + "-url", "python" + "hosted", "/ro" + "ot/", ".." + "/shared"):
            assert word not in text, f"{path} names {word}"


SYSTEM_NAMES = {name for name, entry in SYSTEMS.items() if entry.options.__module__.startswith("dydiff_jax.")}


#: Methods of tables and strings whose first argument is looked up or compared.
LOOKUPS = ("get", "pop", "setdefault", "startswith", "endswith")


def registrations(tree: ast.AST) -> list[ast.expr]:
    """The keys of what goes into SYSTEMS: ``SYSTEMS["name"] = ...`` and ``SYSTEMS |= {"name": ...}``."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id == "SYSTEMS" and isinstance(node.value, ast.Dict):
                found += node.value.keys
            if isinstance(target, ast.Subscript) and ast.unparse(target.value) == "SYSTEMS":
                found.append(target.slice)
    return found


def asked_for(node: ast.AST) -> list[ast.expr]:
    """What a node compares with, looks up or lists."""
    match node:
        case ast.Compare():
            return [node.left, *node.comparators]
        case ast.MatchValue():
            return [node.value]
        case ast.Dict():
            return [key for key in node.keys if key is not None]
        case ast.Set() | ast.List() | ast.Tuple():
            return node.elts
        case ast.Subscript():
            return [node.slice]
        case ast.Call(func=ast.Attribute(attr=name)) if name in LOOKUPS:
            return node.args[:1]
    return []


def names_asked_for(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of every place, but for registrations, where code depends on the name of a system."""
    registered = {id(key) for key in registrations(tree)}
    constants = (
        value
        for node in ast.walk(tree)
        for value in asked_for(node)
        if isinstance(value, ast.Constant) and id(value) not in registered
    )
    return [
        (constant.lineno, constant.value)
        for constant in constants
        if isinstance(constant.value, str) and constant.value in SYSTEM_NAMES
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_asks_for_the_name_of_a_system(path):
    assert names_asked_for(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        'method == "rolling"',
        '"rolling" != method',
        'method in ("standard", "dynamical")',
        'method in {"standard"}',
        'method.startswith("rolling")',
        'COLOURS = {"regression": "red"}',
        'COLOURS["regression"]',
        'COLOURS.get("regression")',
        'match method:\n    case "rolling" | "x":\n        pass',
        'SYSTEMS["rolling"].colour',
    ],
)
def test_a_name_that_is_asked_for_is_found(text):
    assert names_asked_for(ast.parse(text))


def test_a_registration_is_none():
    assert not names_asked_for(
        ast.parse('SYSTEMS |= {"rolling": Entry("a")}\nSYSTEMS["regression"] = Entry("rolling")')
    )


def test_the_top_of_the_package_is_small():
    """At most twelve packages and eight modules, beside __init__."""
    packages = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    modules = [path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
    assert len(packages) <= 12, sorted(packages)
    assert len(modules) <= 8, sorted(modules)
