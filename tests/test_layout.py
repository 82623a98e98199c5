"""The house: imports run one way, and the core needs jax alone."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxnorm

PACKAGE = Path(jaxnorm.__file__).parent

# A module may import those above it in this list.
ORDER = [
    "exporting",
    "dtypes",
    "options",
    "axes",
    "arguments",
    "sharding",
    "devices",
    "linear",
    "arithmetic",
    "shifted",
    "slices",
    "sums",
    "sampling",
    "reduction",
    "weighting",
    "parts",
    "measuring",
    "operands",
    "affine",
    "tangent",
    "moments",
    "normalization",
    "stats",
    "running",
    "replicas",
    "norms",
    "norms.checks",
    "norms.batch",
    "norms.per_example",
    "weight_norms",
    "spectral",
    "flax_shared",
    "flax_shared.inputs",
    "flax_shared.per_example",
    "flax_shared.batch",
    "flax_shared.weight_norms",
    "linen.base",
    "linen.batch",
    "linen.per_example",
    "linen.weight_norms",
    "linen",
    "nnx.base",
    "nnx.batch",
    "nnx.per_example",
    "nnx.weight_norms",
    "nnx",
]


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update([node.module, *names])
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name.removeprefix("jaxnorm.") for name in found if name.startswith("jaxn")}


def modules() -> dict[str, Path]:
    files = PACKAGE.rglob("*.py")
    names = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
        for file in files
    }
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def test_every_module_has_its_place():
    assert set(modules()) - {"__init__"} == set(ORDER)


def test_the_readme_names_every_module():
    readme = (PACKAGE.parent / "README.md").read_text()
    table = readme[readme.index("| in `jaxnorm/` | |") :]
    named = re.findall(r"`(\w+)`", table[: table.index("\n\n")])
    assert set(named) == {name.split(".")[0] for name in ORDER}


def test_imports_run_downwards():
    for name, path in modules().items():
        if name == "__init__":
            continue
        known = imported_modules(path) & set(ORDER)
        above = set(ORDER[: ORDER.index(name)])
        assert known <= above, f"{name} imports {known - above}"


def test_the_package_says_that_it_is_typed():
    """Without the marker, type checkers take every function of it for untyped."""
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("name", jaxnorm.__all__)
def test_public_docstrings_say_all(name):
    public = getattr(jaxnorm, name)
    text = inspect.getdoc(public)
    sections = ["Attributes:"]
    if not isinstance(public, type):
        sections = ["Args:", "Raises:", "Example:"]
        sections += ["Returns:"] * (public.__annotations__["return"] != "None")
    assert all(f"\n{title}\n" in text for title in sections)


def test_public_names_are_those_of_the_list():
    public = {name for name in vars(jaxnorm) if not name.startswith("_")}
    assert set(jaxnorm.__all__) <= public
    # What else is visible are submodules, and none has the name of a function.
    assert public - set(jaxnorm.__all__) <= {name.split(".")[0] for name in ORDER}
    assert jaxnorm.__all__ == sorted(jaxnorm.__all__)


def test_import_needs_jax_alone():
    code = (
        "import sys, jax.extend; before = set(sys.modules); import jaxnorm; "
        "more = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "more -= {'jaxnorm', 'jax', *sys.stdlib_module_names}; "
        "sys.exit(f'imported {more}' if more else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
