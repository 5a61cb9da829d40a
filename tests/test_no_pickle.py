"""Nothing that nearzero reads can run: the source has no way to turn the content of a file into code."""

import ast
from pathlib import Path

import pytest

import nearzero

ROOT = Path(nearzero.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "jsonpickle", "joblib", "marshal"),
    *("shelve", "yaml", "ruamel", "oyaml", "runpy", "imp", "code", "codeop", "pty", "ctypes", "cffi"),
    *("torch.hub", "torch.package", "torch.distributed.checkpoint", "torch.utils.cpp_extension"),
    *("importlib.machinery", "importlib.abc", "xml.etree", "xml.dom", "xml.sax"),
}
"""Modules that make objects or code of what a file holds, and any part of them."""

NAMES = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.jit.save", "torch.serialization.load", "torch.export.load"),
    *("numpy.load", "numpy.memmap.load", "numpy.lib.format.read_array", "numpy.lib.npyio.NpzFile", "numpy.fromregex"),
    *("os.system", "os.popen", "os.startfile", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("importlib.util.spec_from_file_location", "importlib.util.spec_from_loader", "importlib.util.module_from_spec"),
    *(
        "importlib.util.LazyLoader",
        "importlib.reload",
        "importlib.__import__",
        "pydoc.locate",
        "pkgutil.resolve_name",
        "pandas.read_pickle",
    ),
    *("shutil.unpack_archive", "zipfile.ZipFile.extractall", "tarfile.open", "tarfile.TarFile", "logging.config"),
    *("jinja2.Template", "multiprocessing.reduction", "accelerate.utils.load"),
}
"""Functions that do so, or start a shell, or unpack; importlib.util.find_spec only looks whether a package is there."""

BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "load_state",
    "extractall",
    "extract",
    "from_string",
    "load_module",
    "exec_module",
    "read_pickle",
    "to_pickle",
}
"""accelerate's load_state unpickles; extract writes what an archive says; from_string compiles a template."""

ONLY = {
    "allow_pickle": False,
    "shell": False,
    "trust_remote_code": False,
    "weights_only": True,
    "use_safetensors": True,
}
"""Keywords that may have no other value than this literal."""
NEEDED = {"jinja2.Environment": ("autoescape", True)}
"""Keywords that a call must have, with this literal."""
OURS = "nearzero."

EXCEPT = {"pickled/machine.py": {"pickletools"}}
"""pickletools takes a pickle's bytes apart, into opcodes, numbers and text, and makes nothing else of them."""


def aliases(tree):
    """Every name that an import binds, at any depth of the file: {"np": "numpy", "load": "torch.load"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node, names):
    """What an expression is called in full, getattr with a literal included: "torch.load"; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, names)
        return f"{inner}.{node.attr}" if inner else None
    if isinstance(node, ast.Call) and dotted(node.func, names) == "getattr" and len(node.args) >= 2:
        inner, name = dotted(node.args[0], names), literal(node.args[1])
        return f"{inner}.{name}" if inner and isinstance(name, str) else None
    return None


def literal(node):
    """The value of a literal, and the node itself for anything else, which equals no value."""
    return node.value if isinstance(node, ast.Constant) else node


def within(name, banned):
    """The entry of `banned` that a dotted name is, or lies in."""
    parts = name.split(".")
    return next((".".join(parts[:n]) for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in banned), None)


def is_ours(node):
    """Whether a module's name is a literal, or an f-string that begins with our package: no other package can be reached."""
    if isinstance(node, ast.JoinedStr):
        first = literal(node.values[0]) if node.values else ""
        return isinstance(first, str) and first.startswith(OURS)
    return isinstance(literal(node), str)


def imported(tree):
    """(line, module) of every import statement, names that are taken from a module included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def arguments(tree):
    """Every name, by id, that is an argument of the function around it, or a field, and that is not called: `compile=True` is a flag."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    own = {id(node) for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            given = {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)}
            inner = (node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id in given)
            own |= {id(node) for node in inner}
    return own - called


def of_call(node, names):
    """What is wrong with a call: its keywords, the module that it imports, the method."""
    called = dotted(node.func, names)
    for keyword in node.keywords:
        if keyword.arg in ONLY and literal(keyword.value) is not ONLY[keyword.arg]:
            yield f"{keyword.arg}="
    given = {keyword.arg: literal(keyword.value) for keyword in node.keywords}
    if called in NEEDED and given.get(NEEDED[called][0]) is not NEEDED[called][1]:
        yield f"{called} without {NEEDED[called][0]}"
    if called == "importlib.import_module" and not (
        len(node.args) == 1 and not node.keywords and is_ours(node.args[0])
    ):
        yield "importlib.import_module"
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        yield f".{node.func.attr}()"


def violations(source):
    """(line, what) of everything in a source that could run what a file says."""
    tree = ast.parse(source)
    names, own = aliases(tree), arguments(tree)
    found = {(line, what) for line, module in imported(tree) if (what := within(module, MODULES | NAMES))}
    for node in ast.walk(tree):
        name = dotted(node, names) if isinstance(node, (ast.Name, ast.Attribute, ast.Call)) else None
        if name and (what := within(name, MODULES | NAMES)) and (name.split(".")[0] in names.values() or "." in name):
            found.add((node.lineno, what))
        if name and name.removeprefix("builtins.").removeprefix("__builtins__.") in BUILTINS and id(node) not in own:
            found.add((node.lineno, name.split(".")[-1]))
        if name and name.startswith(("os.exec", "os.spawn", "os.posix_spawn")):
            found.add((node.lineno, name))
        if isinstance(node, ast.Attribute) and node.attr in (
            "__reduce__",
            "__subclasses__",
            "__globals__",
            "__builtins__",
        ):
            found.add((node.lineno, node.attr))
        if isinstance(node, ast.Name) and node.id == "import_module" and names.get("import_module") is None:
            found.add((node.lineno, "import_module"))
        if isinstance(node, ast.Call):
            found |= {(node.lineno, what) for what in of_call(node, names)}
        if dotted(node, names) == "importlib.import_module" and not _is_called(node, tree):
            found.add((node.lineno, "importlib.import_module"))
    return sorted(found)


def _is_called(node, tree):
    """Whether an expression is what a call calls, and not a value that is handed on."""
    return any(isinstance(other, ast.Call) and other.func is node for other in ast.walk(tree))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_makes_code_of_a_file(path):
    """No unpickler, no loader that may unpickle, no YAML, no eval, no shell, no import by a name from elsewhere."""
    found = violations(path.read_text(encoding="utf-8"))
    assert {what for _, what in found} == EXCEPT.get(path.relative_to(ROOT).as_posix(), set()), found


def test_no_unpickler_is_excepted():
    """Not even the file that reads pickles has one: it uses nothing but the disassembler of the standard library."""
    assert set.union(*EXCEPT.values()) == {"pickletools"} and len(EXCEPT) == 1


def test_every_file_is_read():
    """The list of files is the package's, with the doors to files in it."""
    assert {"run.py", "registry.py", "files.py", "data/archive.py", "data/arrays.py", "__init__.py"} <= {
        path.relative_to(ROOT).as_posix() for path in FILES
    }


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.html")), ids=lambda path: path.name)
def test_templates_escape_everything(path):
    """No template of a page marks anything as safe or turns escaping off, and none includes another by a variable."""
    text = path.read_text(encoding="utf-8")
    assert not [word for word in ("|safe", "| safe", "autoescape", "Markup", "<script") if word in text]


@pytest.mark.parametrize(
    ("planted", "what"),
    [
        ("import pickle\n", "pickle"),
        ("import pickle as p\n", "pickle"),
        ("from pickle import loads\n", "pickle"),
        ("def f():\n    import _pickle\n", "_pickle"),
        ("import marshal\n", "marshal"),
        ("import shelve\n", "shelve"),
        ("import dill\n", "dill"),
        ("from joblib import load\n", "joblib"),
        ("import cloudpickle\n", "cloudpickle"),
        ("import yaml\n", "yaml"),
        ("from ruamel.yaml import YAML\n", "ruamel"),
        ("import runpy\n", "runpy"),
        ("import ctypes\n", "ctypes"),
        ("from importlib.util import module_from_spec\n", "importlib.util.module_from_spec"),
        ("import importlib.util\nimportlib.util.spec_from_file_location(a, b)\n", "importlib.util.spec_from_file_location"),
        ("from importlib import machinery\n", "importlib.machinery"),
        ("from torch import hub\n", "torch.hub"),
        ("import torch.distributed.checkpoint as dcp\n", "torch.distributed.checkpoint"),
        ("import torch\ntorch.load(path)\n", "torch.load"),
        ("import torch\ntorch.load(path, weights_only=True)\n", "torch.load"),
        ("import torch as t\nx = t.load\n", "torch.load"),
        ("from torch import load as read\n", "torch.load"),
        ("import torch\ngetattr(torch, 'load')(path)\n", "torch.load"),
        ("import torch\ntorch.jit.load(path)\n", "torch.jit.load"),
        ("from torch import jit\njit.load(path)\n", "torch.jit.load"),
        ("import torch\ntorch.hub.load('a/b', 'c')\n", "torch.hub"),
        ("import torch\ntorch.save(x, path)\n", "torch.save"),
        ("import numpy as np\nnp.load(path)\n", "numpy.load"),
        ("import numpy as np\nnp.lib.format.read_array(file)\n", "numpy.lib.format.read_array"),
        ("f(path, allow_pickle=True)\n", "allow_pickle="),
        ("f(path, allow_pickle=flag)\n", "allow_pickle="),
        ("f(path, trust_remote_code=True)\n", "trust_remote_code="),
        ("f(path, weights_only=False)\n", "weights_only="),
        ("f(path, use_safetensors=None)\n", "use_safetensors="),
        ("run('ls', shell=True)\n", "shell="),
        ("run('ls', shell=1)\n", "shell="),
        ("import os\nos.system('ls')\n", "os.system"),
        ("from os import system\n", "os.system"),
        ("import os\nf(os.popen)\n", "os.popen"),
        ("import os\nos.execvp('ls', [])\n", "os.execvp"),
        ("eval(text)\n", "eval"),
        ("exec(text)\n", "exec"),
        ("compile(text, '', 'exec')\n", "compile"),
        ("run = eval\n", "eval"),
        ("map(exec, texts)\n", "exec"),
        ("def f(compile):\n    return compile(text, '', 'exec')\n", "compile"),
        ("def f(compile):\n    pass\nx = compile\n", "compile"),
        ("import builtins\nbuiltins.eval(text)\n", "eval"),
        ("from builtins import exec as go\ngo(text)\n", "exec"),
        ("__import__(name)\n", "__import__"),
        ("import importlib\nimportlib.import_module(name)\n", "importlib.import_module"),
        ("import importlib\nimportlib.import_module(f'{name}.x')\n", "importlib.import_module"),
        ("import importlib\nimportlib.import_module(f'nearzero{name}')\n", "importlib.import_module"),
        ("import importlib\nimportlib.import_module('nearzero.' + name)\n", "importlib.import_module"),
        ("import importlib\nimportlib.import_module('.x', package=name)\n", "importlib.import_module"),
        ("from importlib import import_module as load\nload(record['class'])\n", "importlib.import_module"),
        ("import importlib\nf = importlib.import_module\n", "importlib.import_module"),
        ("import importlib\nimportlib.reload(module)\n", "importlib.reload"),
        ("from pydoc import locate\n", "pydoc.locate"),
        ("archive.extractall(path)\n", ".extractall()"),
        ("import tarfile\ntarfile.open(path)\n", "tarfile.open"),
        ("import shutil\nshutil.unpack_archive(path)\n", "shutil.unpack_archive"),
        ("accelerator.load_state(path)\n", ".load_state()"),
        ("import jinja2\njinja2.Environment()\n", "jinja2.Environment without autoescape"),
        ("import jinja2\njinja2.Environment(autoescape=False)\n", "jinja2.Environment without autoescape"),
        ("import jinja2\njinja2.Template(text)\n", "jinja2.Template"),
        ("environment.from_string(text)\n", ".from_string()"),
        ("x.__class__.__subclasses__()\n", "__subclasses__"),
        ("def __f(self):\n    return self.__reduce__\n", "__reduce__"),
    ],
)  # fmt: skip
def test_the_check_finds_what_is_planted(planted, what):
    """Each kind is found where it is planted, under whatever name it is imported."""
    assert what in [found for _, found in violations(planted)]


@pytest.mark.parametrize(
    "legal",
    [
        "import importlib\nimportlib.import_module(f'nearzero.{home}')\n",
        "import importlib\nimportlib.import_module('tensorboard')\n",
        "from importlib import resources, metadata\nresources.files('nearzero.data')\n",
        "import re\nre.compile('x')\nmodule.eval()\nmodel.compile()\n",
        "import torch\ntorch.compile(module)\nmodule.eval()\ntorch.jit.is_scripting()\n",
        "class A:\n    compile: bool = False\n    def f(self, compile=False):\n        self.compile = compile\n",
        "from importlib.util import find_spec\nfind_spec(name)\n",
        "import json\njson.load(file)\njson.loads(text)\n",
        "from safetensors.torch import load_file\nload_file(path)\nmodule.load_state_dict(tensors)\n",
        "import subprocess\nsubprocess.run(['ls'], shell=False)\n",
        "f(path, use_safetensors=True, trust_remote_code=False, allow_pickle=False)\n",
        "import zipfile\nzipfile.ZipFile(path).open(entry)\n",
        "import jinja2\njinja2.Environment(autoescape=True)\n",
        "import os\nos.replace(a, b)\nos.fsync(1)\n",
        "code = 3\nimp = code\nyaml = 'text'\n",
    ],
)
def test_the_check_allows_what_is_harmless(legal):
    """Our own modules by a name from a table, a literal, safetensors, JSON, re.compile and module.eval() pass."""
    assert violations(legal) == []
