"""The rules of the house, read off the source: who may import whom, what stays out, what every file has."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"version", "types", "errors", "batch", "figures", "ranges", "signals"},
    {"ops", "losses"},
    {"nn"},
    {"encoders"},
    {"models"},
    {"objectives"},
    {"training", "interop"},
    {"evaluation"},
    {"run"},
    {"bench"},
    {"cli"},
    {"__main__", "__init__"},
]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = sorted((ROOT / "alm_jax").rglob("*.py")) + sorted((ROOT / "data_pipelines").rglob("*.py"))
MAX_LINES = 600
MAX_COMMAND_LINES = 150


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> list[str]:
    """Every module a file imports, at its top or inside a function, as dotted names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "alm_jax").parts
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_point_to_the_left(path):
    for name in imports(path):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if path.is_relative_to(ROOT / "data_pipelines"):
            assert top not in ("jax", "flax", "optax"), f"{relative(path)} imports {name}"
            if top == "alm_jax":
                assert target in LAYERS[0], f"{relative(path)} imports {name}"
        elif top == "alm_jax" and target in LAYER:
            here = room(path)
            same_room = target == here
            assert same_room or LAYER[target] < LAYER[here] or LAYER[here] == 0, (
                f"{relative(path)} imports {name}"
            )
        elif top == "data_pipelines":
            assert LAYER[room(path)] >= LAYER["evaluation"], f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_each_concern_has_its_place(path):
    where = relative(path)
    for name in imports(path):
        if name.startswith("flax.linen"):
            assert room(path) in ("nn", "encoders", "models"), f"{where} imports {name}"
        if name.endswith((".NamedSharding", ".make_mesh")):
            assert where in ("alm_jax/training/mesh.py", "alm_jax/training/sharding.py"), (
                f"{where} imports {name}"
            )
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets"):
            assert where.startswith("data_pipelines/"), f"{where} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_are_one_documented_concept(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{relative(path)} has no docstring"
    assert len(text.splitlines()) <= MAX_LINES, f"{relative(path)} wants splitting"
    assert path.name not in ("utils.py", "helpers.py", "misc.py", "common.py")


@pytest.mark.parametrize("path", sorted((ROOT / "alm_jax" / "cli").rglob("*.py")), ids=relative)
def test_commands_parse_call_and_print(path):
    """Arrays and modules belong to the layers below, which are used without a command too."""
    found = {name for name in imports(path) if name.partition(".")[0] in ("jax", "flax", "optax", "orbax")}
    assert not found, f"{relative(path)} imports {found}"
    if path.name != "main.py":  # it dispatches, and is no command
        assert len(path.read_text().splitlines()) <= MAX_COMMAND_LINES, (
            f"{relative(path)}: logic goes to run/"
        )


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_what_is_public_is_documented(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{relative(path)}: class {node.name}"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{relative(path)}: {node.name}"


@pytest.mark.parametrize(
    "command", ["import alm_jax", "from alm_jax.cli.main import dispatch; dispatch(['--help'])"]
)
def test_starting_loads_neither_jax_nor_tensorflow(command):
    code = f"{command}\nimport sys\nassert not {{'jax', 'tensorflow', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        ("import alm_jax.losses.contrastive", {"jax.experimental.pallas", "flax", "optax"}),
        (
            "from alm_jax import from_pretrained",
            {"optax", "orbax", "tensorflow", "torch", "alm_jax.training.loop", "alm_jax.training.checkpoint"},
        ),
    ],
)
def test_heavy_modules_are_loaded_where_they_are_needed(command, heavy):
    code = f"{command}\nimport sys\nfound = {heavy} & set(sys.modules)\nassert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("module", ["decode", "text", "config"])
def test_data_workers_start_without_frameworks(module):
    code = (
        f"import data_pipelines.{module}, sys\n"
        "assert not {'jax', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_files_of_tests_have_names_of_their_own():
    """Without packages pytest imports each by its base name, and one process that meets two of a name stops."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=relative)
def test_random_inputs_belong_to_a_test(path):
    """A generator of a module gives a test what the tests before it left: use the fixture `rng`."""
    generators = ("default_rng", "RandomState", "Generator", "Random")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            name = ast.unparse(node.value.func).rpartition(".")[2]
            assert name not in generators, f"{relative(path)}:{node.lineno} shares a generator among tests"


def test_tests_mirror_the_tree():
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("*.py"))}
    rooms = {path.name for place in (ROOT, ROOT / "alm_jax") for path in place.iterdir() if path.is_dir()}
    assert folders - {"golden", "oracles"} <= rooms
