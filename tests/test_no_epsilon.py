"""No epsilon: the mathematics of the library holds no clamp and no hidden small number."""

import ast
from pathlib import Path

import pytest

import nearzero

ROOT = Path(nearzero.__file__).parent
NAMES = "level parameterization conditioning times weighting grid denoiser objective sampling".split()
FOLDERS = ("process", "conditioning", "times", "solvers")
FILES = [
    *(path for name in NAMES if (path := ROOT / f"{name}.py").exists()),
    *(path for name in FOLDERS for path in sorted((ROOT / name).glob("*.py"))),
]
CLAMPS = {
    "clamp",
    "clamp_",
    "clamp_min",
    "clamp_min_",
    "clamp_max",
    "clamp_max_",
    "clip",
    "clip_",
    "nan_to_num",
    "nan_to_num_",
    "finfo",
}
DOCUMENTED = "docstring states"


def defaults(tree):
    """Every node inside a default value of a class's or function's signature: a visible parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            signature = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        elif isinstance(node, ast.ClassDef):
            signature = [line.value for line in node.body if isinstance(line, ast.AnnAssign) and line.value]
        else:
            continue
        for default in signature:
            yield from ast.walk(default)


def violations(source):
    """(line, what) of every clamp and every small float that is no visible default."""
    tree, lines, found = ast.parse(source), source.splitlines(), []
    visible = set(map(id, defaults(tree)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in CLAMPS:
                found.append((node.lineno, name))
        elif isinstance(node, ast.Constant) and isinstance(node.value, float) and 0 < abs(node.value) <= 1e-3:
            if id(node) not in visible and DOCUMENTED not in lines[node.lineno - 1]:
                found.append((node.lineno, node.value))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_there_is_no_epsilon(path):
    """No call clamps, clips or hides NaN, and no float in (0, 1e-3] stands outside a signature."""
    assert violations(path.read_text()) == []


def test_every_solver_is_read():
    """The list of files follows the folder of solvers."""
    assert {"exponential.py", "sde.py", "vp.py", "denoiser.py", "objective.py"} <= {path.name for path in FILES}
    assert all(path.is_file() for path in FILES)


@pytest.mark.parametrize(
    ("planted", "what"),
    [
        ("def f(x):\n    return x.clamp(min=0)\n", "clamp"),
        ("def f(x):\n    return torch.clip(x, 0, 1)\n", "clip"),
        ("def f(x):\n    return clamp_(x)\n", "clamp_"),
        ("y = torch.nan_to_num(x)\n", "nan_to_num"),
        ("y = x / (sigma + 1e-8)\n", 1e-8),
        ("EPSILON = 1e-3\n", 1e-3),
        ("def f(x, t=torch.tensor(1.0)):\n    return t - 1e-5\n", 1e-5),
        ("class A:\n    x: float = 1.0\n    def f(self):\n        return max(self.x, 1e-4)\n", 1e-4),
    ],
)
def test_the_check_finds_what_is_planted(planted, what):
    """Each kind of epsilon is found, once, where it is planted."""
    assert [found for _, found in violations(planted)] == [what]


@pytest.mark.parametrize(
    "legal",
    [
        "def f(x, beta_start=1e-4, *, end: float = 1e-3):\n    return x\n",
        "class A:\n    beta: float = 1e-4\n",
        "y = x < 1e-3  # the snap that the docstring states\n",
        "y = 0.0 + 0.002 + 1 - 0.5\n",
    ],
)
def test_the_check_allows_visible_parameters(legal):
    """Defaults in signatures, the documented snap, 0 and ordinary numbers are no epsilon."""
    assert violations(legal) == []
