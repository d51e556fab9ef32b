"""Imports point one way, and what is banned is nowhere: both computed from the source."""

import ast
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

# Each package, and what it may import of ours besides `tandem` (the stubs) and itself.
ALLOWED = {
    "tandem_common": set(),
    "tandem_client": set(),
    "tandem_load": set(),
    "tandem_engine": {"tandem_common"},
    "tandem_worker": {"tandem_common", "tandem_engine"},
    "tandem_prefill": {"tandem_common", "tandem_engine", "tandem_worker"},
    "tandem_decode": {"tandem_common", "tandem_engine", "tandem_worker"},
    "tandem_router": {"tandem_common"},
    "tandem_planner": {"tandem_common"},
    "tandem_frontend": {"tandem_common"},
    # Not a service: it drives the pure cores of services, so it may import several.
    "tandem_sim": {"tandem_common", "tandem_engine", "tandem_load", "tandem_router", "tandem_planner"},
    # `tandem simulate` alone uses the simulator, when it is installed.
    "tandem_cli": {"tandem_common", "tandem_client", "tandem_load", "tandem_sim"},
}
TORCHLESS = (
    "tandem_frontend",
    "tandem_router",
    "tandem_planner",
    "tandem_client",
    "tandem_common",
    "tandem_load",
)


def sources(package: str) -> list[Path]:
    (folder,) = [path for path in ROOT.glob(f"*/**/src/{package}") if ".venv" not in path.parts] or [
        ROOT / "cli" / "src" / package
    ]
    files = sorted(folder.rglob("*.py"))
    assert files, f"no sources of {package}"
    return files


def imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_between_packages_point_one_way(package: str) -> None:
    for path in sources(package):
        roots = {name.split(".")[0] for name in imports(parse(path))}
        ours = {root for root in roots if root.startswith("tandem_")} - {package}
        assert ours <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {sorted(ours - ALLOWED[package])}"


@pytest.mark.parametrize("package", ALLOWED)
def test_modules_of_a_package_import_each_other_without_a_cycle(package: str) -> None:
    files = sources(package)
    base = next(path.parent for path in files if path.name == "__init__.py" and path.parent.name == package)

    def module_name(path: Path) -> str:
        parts = path.relative_to(base.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    modules = {module_name(path): path for path in files}
    graph = {
        name: {wanted for wanted in top_level_imports(parse(path), set(modules)) if wanted != name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join((*trail, name))
        if name not in done:
            for wanted in graph[name]:
                visit(wanted, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def top_level_imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules imported when the file is imported; `from package import module` counts as the module."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in modules else node.module)
    return names & modules


def test_only_the_torch_engine_imports_torch() -> None:
    for package in ALLOWED:
        for path in sources(package):
            roots = {name.split(".")[0] for name in imports(parse(path))}
            if roots & {"torch", "safetensors", "transformers"}:
                # The doctor asks for torch's version; it must not need it.
                assert "torch_engine" in path.parts or path.name == "doctor.py", path


@pytest.mark.parametrize("package", TORCHLESS)
def test_a_service_that_needs_no_torch_imports_without_it(package: str) -> None:
    modules = [
        ".".join(
            path.relative_to(path.parents[list(path.parts[::-1]).index("src") - 1]).with_suffix("").parts
        )
        for path in sources(package)
        if path.name != "__init__.py"
    ]
    code = (
        "import sys, importlib\n"
        "for name in ('torch', 'transformers', 'safetensors', 'tandem_engine'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("package", TORCHLESS)
def test_installing_a_torchless_service_does_not_install_torch(package: str) -> None:
    seen: set[str] = set()
    queue = [package.replace("_", "-")]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    assert not seen & {"torch", "transformers", "safetensors", "tandem-engine"}


BANNED_CALLS = {"eval", "exec", "torch.load", "pickle.loads", "pickle.load", "yaml.load", "os.system"}


@pytest.mark.parametrize("package", ALLOWED)
def test_banned_constructs_are_nowhere(package: str) -> None:
    for path in sources(package):
        tree = parse(path)
        where = path.relative_to(ROOT)
        assert not {name.split(".")[0] for name in imports(tree)} & {"pickle", "marshal", "shelve", "dill"}, (
            where
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in BANNED_CALLS, f"{where}:{node.lineno}"
                for keyword in node.keywords:
                    value = ast.unparse(keyword.value)
                    assert (keyword.arg, value) not in {("shell", "True"), ("trust_remote_code", "True")}, (
                        where
                    )
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{where}:{node.lineno}: bare except"
            if isinstance(node, ast.Constant):
                assert node.value != "0.0.0.0", f"{where}:{node.lineno}: listens on all interfaces by default"


def test_no_source_file_passes_400_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in ALLOWED
        for path in sources(package)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long
