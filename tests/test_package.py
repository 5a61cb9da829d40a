"""The house: which file may import which, how long things are, that every example runs, and what the wheel holds."""

import ast
import doctest
import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import nearzero as nz

ROOT = Path(nz.__file__).parents[2]
SOURCE = Path(nz.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

AXES = ("process", "parameterization", "conditioning", "times", "weighting", "grid", "solvers")
LAYERS = (
    ("errors", "files", "registry", "randomness", "pickled"),
    ("level",),
    AXES,
    ("denoiser", "rescaled", "guidance", "oracle", "codec", "shifted"),
    ("path",),
    ("objective", "sampling", "inversion"),
    ("likelihood",),
    ("bounds",),
    ("diagnostics", "networks", "data", "metrics"),
    ("ema",),
    ("recipe", "recipes"),
    ("manifest",),
    ("run", "zoo"),
    ("training", "production", "nll", "posthoc", "interop"),
    ("cards", "halving", "yardstick"),
    ("quality",),
    ("pareto", "search"),
    ("experiments", "report"),
    ("cli",),
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
files = pytest.mark.parametrize("file", TREES)


def module_of(file):
    """The module's name inside nearzero: "solvers.sde", and "" for the package itself."""
    return file.removesuffix(".py").replace("/", ".").removesuffix("__init__").removesuffix(".")


def absolute(node, file):
    """Every module that an import statement may load, names imported from a package included."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = (
            ["nearzero", *module_of(file).split(".")]
            if file.endswith("__init__.py")
            else ["nearzero", *module_of(file).split(".")[:-1]]
        )
        package = [part for part in package if part][: len(package) - node.level + 1]
        base = ".".join([*package, *([node.module] if node.module else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def imports(file):
    """Everything that a file imports, at the top, inside functions and for the type checker."""
    found = [node for node in ast.walk(TREES[file]) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {name for node in found for name in absolute(node, file)}


def ours(file):
    """The parts of nearzero that a file imports, as tuples: ("solvers", "sde")."""
    known = {module_of(other) for other in TREES}
    names = {name.removeprefix("nearzero.") for name in imports(file) if name.startswith("nearzero.")}
    return {tuple(name.split(".")) for name in names if name in known}


# ---- the order of imports


def test_the_order_names_every_file():
    """Each module belongs to exactly one layer; a new one must be given its place."""
    parts = {module_of(file).split(".")[0] for file in TREES} - {"", "__main__"}
    assert parts <= LAYER.keys()
    assert sum(map(len, LAYERS)) == len(LAYER)


@files
def test_imports_run_one_way(file):
    """A file imports only from its own layer or an earlier one; the package and __main__ only bind the ends together."""
    part = module_of(file).split(".")[0]
    if part == "":
        assert ours(file) == set()
    elif part != "__main__":
        late = {other for other in ours(file) if LAYER[other[0]] > LAYER[part]}
        assert late == set()


def test_axes_do_not_know_each_other():
    """No axis imports another; the files of an axis that is a folder may import each other."""
    for file in TREES:
        module = tuple(module_of(file).split("."))
        if module[0] in AXES:
            assert {other[0] for other in ours(file) if other[0] in AXES} <= {module[0]}, file


def test_errors_import_nothing_of_ours():
    """errors.py stands alone, so that everything may raise."""
    assert not {name for name in imports("errors.py") if name.split(".")[0] == "nearzero"}


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("diffusers", ("networks/unet.py", "networks/pretrained.py", "interop/")),
        ("accelerate", ("training/engine.py",)),
        ("click", ("cli/",)),
        ("rich", ("cli/",)),
    ],
)
def test_heavy_packages_have_one_home(package, homes):
    """diffusers, accelerate, click and rich are imported where the design says, and nowhere else."""
    users = {file for file in TREES if any(name.split(".")[0] == package for name in imports(file))}
    assert {file for file in users if not file.startswith(homes)} == set()


STARTS_PROGRAMS = ("data/client.py", "interop/quarantine.py")  # a fixed list of arguments, no shell


@files
def test_nothing_runs_what_a_file_says(file):
    """No pickle, marshal, shelve or yaml, no subprocess but where it is named above, no torch.load, eval, exec or compile, no shell=True, no allow_pickle."""
    banned = {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "marshal",
        "shelve",
        "yaml",
        "subprocess",
        "runpy",
        "torch.load",
        "torch.jit",
        "torch.hub",
        "joblib",
    }
    banned -= {"subprocess"} if file in STARTS_PROGRAMS else set()
    assert {name for name in imports(file) if name in banned or name.split(".")[0] in banned} == set()
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {
                "eval",
                "exec",
                "compile",
                "__import__",
                "torch.load",
                "torch.jit.load",
                "os.system",
                "os.popen",
            }, called
            assert not {keyword.arg for keyword in node.keywords} & {
                "shell",
                "allow_pickle",
                "weights_only",
                "trust_remote_code",
            }, called


# ---- names


@pytest.mark.parametrize("name", nz.__all__)
def test_every_public_name_loads(name):
    """Each name of __all__ loads, is the same object each time, and dir() lists it."""
    assert getattr(nz, name) is getattr(nz, name)
    assert name in dir(nz)


def test_an_unknown_name_is_an_attribute_error():
    """nearzero has the names that it lists, and no others."""
    assert not hasattr(nz, "Unet")
    assert len(set(nz.__all__)) == len(nz.__all__) and dir(nz) == sorted(dir(nz))


def test_importing_nearzero_is_light():
    """`import nearzero` imports no torch, numpy, click or diffusers."""
    code = "import sys, nearzero; print(sorted({'torch', 'numpy', 'click', 'diffusers', 'PIL', 'safetensors'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_sampling_needs_no_diffusers():
    """Only building a U-Net imports diffusers: every public name loads without it."""
    load = "import sys, nearzero as nz; [getattr(nz, name) for name in nz.__all__]"
    code = f"{load}; print(sorted({{'diffusers', 'accelerate', 'click', 'rich'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


# ---- sizes and words


@files
def test_files_are_short(file):
    """A file has less than 300 lines, a function less than 60."""
    assert len((SOURCE / file).read_text(encoding="utf-8").splitlines()) < 300
    for node in ast.walk(TREES[file]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length < 60, f"{node.name}: {length} lines"


def public(tree):
    """Public functions, classes and methods of a file, with the class a method belongs to."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield None, node
            if isinstance(node, ast.ClassDef):
                yield from (
                    (node, inner)
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_")
                )


def is_interface(node):
    return any(ast.unparse(base).split("[")[0] in ("Protocol", "ABC") for base in node.bases)


INHERITED = {
    inner.name
    for tree in TREES.values()
    for node in tree.body
    if isinstance(node, ast.ClassDef) and is_interface(node)
    for inner in node.body
    if isinstance(inner, ast.FunctionDef) and ast.get_docstring(inner)
}


@files
def test_public_things_are_explained(file):
    """Modules and public classes, functions and methods have a docstring; a method may inherit that of its protocol or abstract base."""
    assert ast.get_docstring(TREES[file])
    for owner, node in public(TREES[file]):
        inherited = owner is not None and not is_interface(owner) and (node.name in INHERITED or node.name == "forward")
        assert ast.get_docstring(node) or inherited, node.name


class Zero(nn.Module):
    """A network that answers 0."""

    def forward(self, x, c):
        return torch.zeros_like(x)


@files
def test_examples_run(file):
    """Every example of every docstring prints what it says, with torch, nn, all public names and Zero at hand."""
    if file == "__main__.py":
        return
    module = importlib.import_module(".".join(["nearzero", module_of(file)]).rstrip("."))
    names = {name: getattr(nz, name) for name in nz.__all__}
    at_hand = {**names, **vars(module), "torch": torch, "nn": nn, "nz": nz, "Zero": Zero}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    failures = []
    for test in doctest.DocTestFinder().find(module, globs=at_hand):
        runner.run(test, out=failures.append)
    assert not failures, "".join(failures)


# ---- the wheel


@pytest.mark.wheel
def test_the_wheel_is_whole(tmp_path):
    """The wheel, installed elsewhere and imported from there, has the embedded images and their licence notice, and no tests."""
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(tmp_path / "dist"),
        str(ROOT),
    ]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(build, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob(f"nearzero-{nz.__version__}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel)]
    done = subprocess.run([sys.executable, "-m", "pip", *install], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {name.split("/")[0] for name in names} == {"nearzero", f"nearzero-{nz.__version__}.dist-info"}
    tracked = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name.removeprefix("nearzero/") for name in names if name.startswith("nearzero/")} == tracked
    notice = (tmp_path / "site/nearzero/data/FASHION_MNIST_LICENSE").read_text(encoding="utf-8")
    assert (
        "MIT" in notice and "Zalando SE" in notice and "permission notice shall be included" in " ".join(notice.split())
    )
    metadata = (tmp_path / f"site/nearzero-{nz.__version__}.dist-info/METADATA").read_text(encoding="utf-8")
    assert "License-Expression: Apache-2.0" in metadata
    code = "import nearzero as nz; images = nz.embedded(); print(nz.__file__); print(images.fingerprint())"
    site = tmp_path / "site"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines() == [str(site / "nearzero/__init__.py"), nz.embedded().fingerprint()]
    command = "from nearzero.cli import main; main(['--version'])"
    said = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"nearzero {nz.__version__}\n"
    assert (
        "nearzero = nearzero.cli:main" in (site / f"nearzero-{nz.__version__}.dist-info/entry_points.txt").read_text()
    )
