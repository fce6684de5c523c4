"""Imports go one way, without circles: a module imports from its own line of LAYERS or above."""

import ast
import graphlib

import tiny

LAYERS = """utils
cli configs distributed domains sde_lib
storage
models
samplers
losses readers sampling
datasets likelihood
metrics
evaluation
training
run_lib run_lib_likelihood
planning
report run_lib_cas run_lib_evaluation run_lib_sampling
main run_lib_evaluation_asym run_lib_evaluation_cas run_lib_evaluation_fidis run_lib_evaluation_nll
example scripts studies"""
LEVEL = {unit: level for level, line in enumerate(LAYERS.split("\n")) for unit in line.split()}


def test_imports_go_down_without_circles():
    files = [*tiny.ROOT.glob("*.py"), *(f for u in LEVEL for f in tiny.ROOT.glob(f"{u}/**/*.py"))]
    paths = {str(f.relative_to(tiny.ROOT).with_suffix("")): f for f in files}
    names = {p.replace("/", ".").removesuffix(".__init__"): f for p, f in paths.items()}
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
        for x in graph[name]:
            assert LEVEL[x.split(".")[0]] <= LEVEL[name.split(".")[0]], f"{name} imports {x}"
    graphlib.TopologicalSorter(graph).prepare()  # a circle is an error
