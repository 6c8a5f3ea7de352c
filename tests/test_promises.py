"""Promises about the whole tree: layers, lazy imports, pairs of halves, and what a wheel holds."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "workbench"


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py"))


def test_imports_go_downward_only_and_verification_never_reaches_torch():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("folder", ["datasets", "widgets", "notebooks"])
def test_no_python_file_shadows_a_package(folder):
    assert not list((ROOT / folder).rglob("*.py"))


def test_a_running_kernel_still_imports_the_hub_datasets_package():
    code = "import datasets, sys; print(datasets.__file__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "site-packages" in done.stdout, done.stderr


def test_every_module_opens_with_the_problem_it_solves():
    silent = [str(p.relative_to(ROOT)) for p in modules() if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


def test_modules_stay_one_noun_long():
    long = {str(p.relative_to(ROOT)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_input_is_never_checked_with_assert():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_package_inits_hold_no_code_but_lazy_names():
    allowed = (ast.Expr, ast.ImportFrom, ast.Assign, ast.AugAssign, ast.FunctionDef)
    for path in PACKAGE.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            assert isinstance(node, allowed), f"{path.relative_to(ROOT)}:{node.lineno}"
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("__future__", "workbench.core"), f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_lazy_public_name_resolves():
    code = (
        "import importlib, pathlib, sys\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for init in sorted(root.rglob('__init__.py')):\n"
        "    name = '.'.join(init.parent.relative_to(root.parent).parts)\n"
        "    package = importlib.import_module(name)\n"
        "    for public in getattr(package, '__all__', []):\n"
        "        getattr(package, public)\n"
        "print('resolved')"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(PACKAGE)], capture_output=True, text=True)
    assert done.stdout.endswith("resolved\n"), done.stderr[-2000:]


@pytest.mark.parametrize("module", ["workbench.cli", "workbench.spec.verify", "workbench.journal"])
def test_verifying_and_the_command_line_import_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'sae_lens'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr[-2000:]


@pytest.mark.parametrize("module", ["workbench.consumer.apply", "workbench.consumer.remeasure"])
def test_the_consumer_reaches_plain_transformers_only(module):
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('transformer_lens', 'sae_lens', 'IPython', 'ipywidgets', 'anywidget', 'jupyterlab'):
            raise ImportError('the consumer reached ' + name)
sys.meta_path.insert(0, Refuse())
import {module}
print('plain')
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "plain\n", done.stderr[-2000:]


def test_python_and_front_end_halves_of_a_widget_share_a_name():
    python = {
        p.stem for p in (PACKAGE / "widgets").glob("*.py") if re.search(r"^class \w+\(View\):", p.read_text(), re.M)
    }
    front = {p.stem for p in (ROOT / "widgets").glob("*.js")} - {"base"}
    assert python == front


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "checkout"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_organism_the_front_end_and_the_notebooks_and_nothing_importable_beside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert tops == {"workbench"}
    for folder, wheel_folder, patterns in (
        ("datasets", "workbench/_datasets", ("*.safetensors", "*.json", "*.jinja", "*.md")),
        ("widgets", "workbench/widgets/static", ("*.js", "*.css")),
        ("notebooks", "workbench/_notebooks", ("*.ipynb",)),
    ):
        for pattern in patterns:
            for path in (ROOT / folder).rglob(pattern):
                if "tests" in path.parts or ".ipynb_checkpoints" in path.parts:
                    continue
                assert f"{wheel_folder}/{path.relative_to(ROOT / folder)}" in names


def test_the_installed_wheel_runs_the_demo_from_another_directory(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(site)}
    code = "import workbench, datasets; print(workbench.__file__); print(datasets.__file__)"
    where = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    ).stdout.split()
    assert where[0].startswith(str(site))
    assert "site-packages" in where[1]
    command = [sys.executable, "-W", "ignore", "-m", "workbench", "demo", "--out", "result", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    assert (tmp_path / "result").is_dir()
