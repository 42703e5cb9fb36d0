"""The rules of import, read from the syntax trees."""

import ast
import pathlib

import pytest

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
    "runs": {
        "types", "system", "config", "build", "codecs", "data", "distributed", "evaluation", "training", "runs.files",
        "runs.exit_codes",
    },
    "cost_model": {
        "types", "system", "config", "build", "codecs", "distributed", "models", "training", "runs", "runs.files",
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
    "module, users",
    [
        (
            "ml_collections",
            {"config", "build", "plan", "runfiles", "scoring", "runs", "main", "compare", "export"},
        ),
        ("flax", {"models", "training"}),
        ("orbax", {"training"}),
        ("grain", {"data"}),
        ("matplotlib", {"plots"}),
    ],
)
def test_outside_libraries_stay_where_they_belong(module, users):
    found = {
        part_of(path)
        for path in FILES
        if any(
            name == module or name.startswith(f"{module}.") for name in imports(ast.parse(path.read_text()))
        )
    }
    assert found <= users


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
