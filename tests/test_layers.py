"""Which module may import which: the architecture's import direction, checked on the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module may import modules of strictly lower layers, and of its own package folder's base.
LAYERS = [
    {"types", "noise", "penalty", "views", "background", "host", "affine.base"},
    {
        "linalg",
        "schedules",
        "derivatives",
        "affine.maps",
        "affine.unrolled",
        "affine.cell_input",
        "peers.arguments",
    },
    {
        "group_gradient",
        "permutation_groups",
        "averages",
        "updates",
        "rounding",
        "affine.recurrent",
    },
    {"step_size", "geometry", "rank_two_gradient", "clipping", "affine.convert"},
    {"factors.base", "arrow", "low_rank_gradient"},
    {"factors.matrix", "factors.diagonal", "factors.normalisation"},
    {"axis_plan", "frames", "block_matrix"},
    {"forms.base", "row_fit"},
    {
        "forms.kron",
        "forms.dense",
        "forms.diagonal",
        "forms.closed_diagonal",
        "forms.permutation",
        "forms.block_triangular",
        "forms.sparse_lu",
        "forms.low_rank",
    },
    {"forms.touched_rows"},
    {"curvature", "scope", "blocks", "decay", "fitting", "diagnostics"},
    {"criteria", "sparse_block", "state_io", "summary"},
    {"row_step", "groups", "store", "peers.layers", "peers.likelihoods", "peers.quasi_newton"},
    {"whole_step", "peers.kronecker"},
    {"runners", "peers.kbfgs", "peers.kfac"},
    {"block_step", "capture"},
    {"joint_step"},
    {"optimizer", "peers.equilibration", "peers.hessian_diagonal"},
    {"named", "config.forms", "config.criteria", "config.base"},
    {"config.psgd", "config.torch_optimizers", "config.peer"},
    {"config.registry"},
]
LAYER = {f"psgd_optim.{name}": i for i, names in enumerate(LAYERS) for name in names}
# __init__ files
ANYWHERE = {
    "psgd_optim",
    "psgd_optim.forms",
    "psgd_optim.factors",
    "psgd_optim.affine",
    "psgd_optim.config",
    "psgd_optim.peers",
}
TOOLS = "psgd_optim.tools"


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: write imports in full"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            found |= names if is_package else {node.module}
    return found


def top(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("path", sources("psgd_optim"), ids=module_name)
def test_psgd_optim_imports_point_downwards(path: Path) -> None:
    name = module_name(path)
    ours = {x for x in imports(path) if top(x) == "psgd_optim"}
    if name.startswith(TOOLS):
        assert all(x.startswith((TOOLS, "psgd_optim.types")) for x in ours)
    elif name not in ANYWHERE:
        assert name in LAYER, f"give {name} a layer in this test and in docs/architecture.md"
        assert all(LAYER[x] < LAYER[name] for x in ours), sorted(ours)


@pytest.mark.parametrize("path", sources("psgd_optim/affine"), ids=module_name)
def test_the_affine_layers_know_nothing_of_the_optimizer(path: Path) -> None:
    ours = {x for x in imports(path) if top(x) == "psgd_optim"}
    assert all(x.startswith("psgd_optim.affine.") for x in ours), sorted(ours)


@pytest.mark.parametrize("path", sources("psgd_optim"), ids=module_name)
def test_psgd_optim_needs_torch_alone(path: Path) -> None:
    outside = {top(x) for x in imports(path)} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "psgd_optim", "_typeshed"}


@pytest.mark.parametrize(("package", "other"), [("psgd_lm", "psgd_rl"), ("psgd_rl", "psgd_lm")])
def test_the_applications_do_not_know_each_other(package: str, other: str) -> None:
    for path in sources(package):
        used = {top(x) for x in imports(path)}
        assert other not in used, path
        assert not used & {"scripts", "step_bench", "tests", "tyro"}, path


@pytest.mark.parametrize("package", ["psgd_optim", "psgd_lm", "psgd_rl", "scripts"])
def test_no_import_hides_in_a_function(package: str) -> None:
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                inner = [x for x in ast.walk(node) if isinstance(x, ast.Import | ast.ImportFrom)]
                assert not inner, f"{path}:{node.name}"


def test_importing_the_optimizer_imports_torch_and_the_standard_library_only() -> None:
    script = (
        "import sys, torch; before = set(sys.modules); import psgd_optim\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'torch', 'psgd_optim'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
