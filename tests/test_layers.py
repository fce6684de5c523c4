"""The house rules, read from the sources: arrows one way, no circles, few files in the root.

The imports are those of a module wherever they stand, within functions too.
"""

import ast
import functools
import graphlib

import tiny

# From the bottom up, packages and modules of the root: a module imports from its own layer and from
# those before it in this list, never from those after it. docs/extending.md says what each holds.
LAYERS = [
    {"utils"},
    {"cli", "configs", "distributed", "domains", "sde_lib"},
    {"models"},
    {"samplers", "storage"},
    {"losses", "readers", "sampling"},
    {"datasets", "likelihood"},
    {"evaluation", "metrics"},
    {"training"},
    {"run_lib"},
    {"planning"},
    {"report", "run_lib_cas", "run_lib_evaluation", "run_lib_sampling", "sweeps"},
    {"main", "run_lib_evaluation_asym", "run_lib_evaluation_cas"},
    {"run_lib_evaluation_fidis", "run_lib_evaluation_nll"},
]
# What uses the library and is used by none of it.
ON_TOP = {"benchmarks", "demo", "experiments", "pretrained", "soak", "tests"}
LINES = 400


def python_files():
    """The repository's Python files: in the root, and in the folders that begin with a letter."""
    folders = [path for path in tiny.ROOT.glob("[a-z]*") if path.is_dir()]
    aside = {"data", "results", "build", "venv"}
    files = [*tiny.ROOT.glob("*.py")]
    for folder in folders:
        if folder.name not in aside:
            files += folder.rglob("*.py")
    return sorted(files)


def name_of(path):
    """``models.ema`` of ``models/ema.py``, ``models`` of ``models/__init__.py``."""
    parts = path.relative_to(tiny.ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports():
    """Each module of the library with the modules of the library that it imports."""
    paths = {name_of(path): path for path in python_files()}
    paths = {name: path for name, path in paths.items() if name.split(".")[0] not in ON_TOP}
    graph = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: relative import"
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                # `from models import layers` is about the module, not about the package.
                found |= below & paths.keys() or {node.module}
                if below - paths.keys():
                    found.add(node.module)
            if any(other.split(".")[0] in ON_TOP for other in found):
                raise AssertionError(f"{path} imports what is on top of the library")
        graph[name] = (found & paths.keys()) - {name}
    return graph


def test_no_circles():
    """A circle fails in `graphlib` with the names of its modules."""
    assert len(list(graphlib.TopologicalSorter(imports()).static_order())) == len(imports())


def test_arrows_go_down():
    level = {unit: number for number, layer in enumerate(LAYERS) for unit in layer}
    units = {name.split(".")[0] for name in imports()}
    assert units == level.keys(), "name new packages and root modules in LAYERS"
    up = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if level[name.split(".")[0]] < level[other.split(".")[0]]
    ]
    assert not up


def test_few_files_lie_in_the_root():
    assert len(list(tiny.ROOT.glob("*.py"))) <= 20


def test_files_are_short():
    lengths = {
        str(path.relative_to(tiny.ROOT)): len(path.read_text().splitlines())
        for path in python_files()
    }
    assert not {path: n for path, n in lengths.items() if n > LINES}
