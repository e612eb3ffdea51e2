"""The package as it is installed and imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import zeta_ops

INSTALLED = Path(zeta_ops.__file__).parent
CHECKOUT = Path(__file__).parent.parent
IN_CHECKOUT = pytest.mark.skipif(
    INSTALLED.parent != CHECKOUT, reason="the installed package is tested, not the checkout beside these tests"
)


def python(code: str, path: Path | None = None) -> str:
    folder = path or INSTALLED.parent
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_import_loads_no_other_package() -> None:
    heavy = {"numpy", "numba", "cupy", "torch", "jax", "ml_dtypes"}
    assert python(f"import sys, zeta_ops; print({heavy} & set(sys.modules))") == "set()"


def test_import_is_quick() -> None:
    code = "import time; t = time.perf_counter(); import zeta_ops; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(5)) < 0.020


def test_public_names() -> None:
    assert set(zeta_ops.__all__) <= set(dir(zeta_ops))
    assert zeta_ops.__all__ == sorted(zeta_ops.__all__)
    with pytest.raises(AttributeError, match="no attribute 'attention_please'"):
        zeta_ops.attention_please  # noqa: B018
    assert (INSTALLED / "py.typed").exists()


@IN_CHECKOUT
@pytest.mark.parametrize("name", ["backends", "adapters"])
def test_bare_folders_cannot_be_imported(name: str) -> None:
    code = f"""
try:
    import {name}
except ImportError as error:
    print(error)
"""
    assert f"as zeta_ops.{name}" in python(code, CHECKOUT)


@IN_CHECKOUT
def test_every_package_is_listed() -> None:
    listed = (CHECKOUT / "pyproject.toml").read_text()
    for top, prefix in (("zeta_ops", "zeta_ops"), ("backends", "zeta_ops.backends"), ("adapters", "zeta_ops.adapters")):
        for path in (CHECKOUT / top).rglob("__init__.py"):
            if not any(parent.is_symlink() for parent in path.parents):
                name = ".".join([prefix, *path.parent.relative_to(CHECKOUT / top).parts])
                assert f'"{name}"' in listed, f"{name} is missing in pyproject.toml"


@IN_CHECKOUT
def test_checkout_without_symbolic_links(tmp_path: Path) -> None:
    import shutil

    for top in ("zeta_ops", "backends", "adapters"):
        shutil.copytree(CHECKOUT / top, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    for name in ("backends", "adapters"):
        (tmp_path / "zeta_ops" / name).unlink()
        (tmp_path / "zeta_ops" / name).write_text(f"../{name}")
    code = "import zeta_ops; print(zeta_ops.__file__, zeta_ops.available_backends()['numpy'])"
    assert python(code, tmp_path) == f"{tmp_path / 'zeta_ops' / '__init__.py'} None"
