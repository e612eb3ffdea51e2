"""Compare the contents of the wheel and the sdist in a folder with the tree: nothing forgotten, nothing too much."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"zeta_ops": "zeta_ops", "backends": "zeta_ops/backends", "adapters": "zeta_ops/adapters"}
LINK_MODE = "120000"  # git's mode of a symbolic link, also where the checkout made it a plain file
NOT_IN_SDIST = (".ci/", ".gitignore")
GENERATED = {"PKG-INFO", "setup.cfg"}


def files_in_tree() -> set[str]:
    """List the files that git tracks, and those that it would, without links."""
    tracked = _git("ls-files", "-z", "--stage")  # "<mode> <object> <stage>\t<name>"
    untracked = _git("ls-files", "-z", "--others", "--exclude-standard")
    return {entry.split("\t")[1] for entry in tracked if not entry.startswith(LINK_MODE)} | set(untracked)


def _git(*arguments: str) -> list[str]:
    run = subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return run.stdout.split("\0")[:-1]


def in_wheel(name: str) -> str | None:
    """Place in the wheel of a file of the tree; None if it is in no package."""
    top, _, rest = name.partition("/")
    return f"{PACKAGES[top]}/{rest}" if top in PACKAGES else None


def main() -> None:
    """Fail with the differences, if there are any."""
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    tree = files_in_tree()
    with zipfile.ZipFile(wheel) as archive:
        wheel_files = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        sdist_files = {member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()}
    sdist_files = {name for name in sdist_files if ".egg-info/" not in name} - GENERATED
    expected = {
        "wheel": (wheel_files, {place for name in tree if (place := in_wheel(name))}),
        "sdist": (sdist_files, {name for name in tree if not name.startswith(NOT_IN_SDIST)}),
    }
    problems = []
    for what, (actual, wanted) in expected.items():
        problems += [f"{what} lacks {name}" for name in sorted(wanted - actual)]
        problems += [f"{what} has {name}, which is not in the tree" for name in sorted(actual - wanted)]
    if problems:
        sys.exit("\n".join(problems))
    print(f"wheel: {len(wheel_files)} files, sdist: {len(sdist_files)} files, as in the tree")


if __name__ == "__main__":
    main()
