"""The package as it is installed and imported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import zeta_ops

INSTALLED = Path(zeta_ops.__file__).parent
CHECKOUT = Path(__file__).parent.parent
PREFIXES = {"zeta_ops": "zeta_ops", "backends": "zeta_ops.backends", "adapters": "zeta_ops.adapters"}
IN_CHECKOUT = pytest.mark.skipif(
    INSTALLED.parent != CHECKOUT, reason="the installed package is tested, not the checkout beside these tests"
)


def run_python(*arguments: str, path: Path | None = None) -> str:
    folder = path or INSTALLED.parent
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# Without `site` nothing is loaded before: what an environment's .pth files import would hide what zeta_ops imports.
def test_import_loads_only_the_standard_library() -> None:
    code = "import sys, zeta_ops; print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    assert set(run_python("-S", "-c", code).split()) == {"__main__", "zeta_ops"}


def test_import_is_quick() -> None:
    code = "import time; t = time.perf_counter(); import zeta_ops; print(time.perf_counter() - t)"
    assert min(float(run_python("-S", "-c", code)) for _ in range(10)) < 0.020


def test_public_names() -> None:
    assert zeta_ops.__all__ == sorted(zeta_ops.__all__)
    assert set(zeta_ops._MODULE_OF) == set(zeta_ops.__all__)
    assert set(zeta_ops.__all__) <= set(dir(zeta_ops))
    for name in zeta_ops.__all__:
        public = getattr(zeta_ops, name)
        assert (public.__name__, public.__module__) == (name, zeta_ops._MODULE_OF[name])


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'attention_please'"):
        zeta_ops.attention_please  # noqa: B018


def test_types_are_announced() -> None:
    assert (INSTALLED / "py.typed").is_file()


@IN_CHECKOUT
@pytest.mark.parametrize("name", ["backends", "adapters"])
def test_bare_folders_cannot_be_imported(name: str) -> None:
    code = f"""
try:
    import {name}
except ImportError as error:
    print(error)
"""
    assert f"as zeta_ops.{name}" in run_python("-c", code, path=CHECKOUT)


def listed_packages() -> list[str]:
    block = re.search(r"^packages = \[(.*?)\]", (CHECKOUT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert block
    return re.findall(r'"(.*?)"', block[1])


def packages_in_tree() -> dict[str, Path]:
    packages = {}
    for top, prefix in PREFIXES.items():
        for folder, below, files in os.walk(CHECKOUT / top):  # does not follow the links inside zeta_ops
            below[:] = [name for name in below if name != "__pycache__"]
            if any(file.endswith(".py") for file in files):
                packages[".".join([prefix, *Path(folder).relative_to(CHECKOUT / top).parts])] = Path(folder)
    return packages


@IN_CHECKOUT
def test_every_package_is_listed_and_has_an_init_file() -> None:
    packages = packages_in_tree()
    assert set(listed_packages()) == set(packages)
    assert [name for name, folder in packages.items() if not (folder / "__init__.py").is_file()] == []


@IN_CHECKOUT
@pytest.mark.parametrize("links", ["are files", "are missing"])
def test_checkout_without_symbolic_links(links: str, tmp_path: Path) -> None:
    for top in PREFIXES:
        shutil.copytree(CHECKOUT / top, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    for name in ("backends", "adapters"):
        link = tmp_path / "zeta_ops" / name
        link.unlink(missing_ok=True)
        if links == "are files":  # what git writes where core.symlinks is false
            link.write_text(f"../{name}")
    code = "import zeta_ops; print(zeta_ops.__file__, zeta_ops.available_backends()['numpy'])"
    assert run_python("-c", code, path=tmp_path) == f"{tmp_path / 'zeta_ops' / '__init__.py'} None"
