"""Compare the contents of a wheel and an sdist with the tree: nothing forgotten, nothing too much."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"zeta_ops": "zeta_ops", "backends": "zeta_ops/backends", "adapters": "zeta_ops/adapters"}
SHIPPED_IN_WHEEL = {".py", ".typed", ".cu", ".cuh"}
NOT_IN_SDIST = (".ci/", ".git", "examples/")


def tracked() -> set[str]:
    """List the files that git tracks, without links."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {name for name in listed if not (ROOT / name).is_symlink()}


def expected_in_wheel() -> set[str]:
    """Map the packages' files in the tree to their places in a wheel."""
    expected = set()
    for name in tracked():
        top, _, rest = name.partition("/")
        if top in PACKAGES and Path(name).suffix in SHIPPED_IN_WHEEL | ({""} if name.endswith("py.typed") else set()):
            expected.add(f"{PACKAGES[top]}/{rest}")
    return expected


def main() -> None:
    """Fail with the differences, if there are any."""
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    generated = {"PKG-INFO", "setup.cfg"}
    in_sdist = {name for name in in_sdist if ".egg-info/" not in name} - generated
    in_tree = {name for name in tracked() if not name.startswith(NOT_IN_SDIST)}
    problems = []
    for what, actual, expected in (("wheel", in_wheel, expected_in_wheel()), ("sdist", in_sdist, in_tree)):
        problems += [f"{what} lacks {name}" for name in sorted(expected - actual)]
        problems += [f"{what} has {name}, which is not in the tree" for name in sorted(actual - expected)]
    if problems:
        sys.exit("\n".join(problems))
    print(f"wheel: {len(in_wheel)} files, sdist: {len(in_sdist)} files, as in the tree")


if __name__ == "__main__":
    main()
