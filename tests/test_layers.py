"""Imports go one way, without circles, wherever in a module they stand."""

import ast
import graphlib

import tiny

# From the bottom up, packages and modules of the root: each imports from its own line or above.
LAYERS = """
utils
cli configs distributed domains sde_lib
models
samplers storage
losses readers sampling
datasets likelihood
evaluation metrics
training
run_lib
planning
report run_lib_cas run_lib_evaluation run_lib_sampling sweeps
main run_lib_evaluation_asym run_lib_evaluation_cas run_lib_evaluation_fidis run_lib_evaluation_nll
scripts studies"""
LEVEL = {unit: level for level, line in enumerate(LAYERS.split("\n")) for unit in line.split()}


def test_imports_go_down_without_circles():
    files = [*tiny.ROOT.glob("*.py"), *(f for u in LEVEL for f in tiny.ROOT.glob(f"{u}/**/*.py"))]
    dotted = (".".join(f.relative_to(tiny.ROOT).with_suffix("").parts) for f in files)
    names = {name.removesuffix(".__init__"): f for name, f in zip(dotted, files)}
    graph = {}
    for name, file in names.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= below & names.keys() or {node.module}
        graph[name] = found & names.keys() - {name}
        up = [x for x in graph[name] if LEVEL[x.split(".")[0]] > LEVEL[name.split(".")[0]]]
        assert not up, f"{name} imports {up}"
    graphlib.TopologicalSorter(graph).prepare()  # a circle is an error
