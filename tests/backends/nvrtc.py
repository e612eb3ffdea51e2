"""The CUDA compiler as a library, which needs no GPU: what a kernel takes on each of them."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from zeta_ops.backends.cupy.sources import KERNELS

__all__ = ["compile_for", "nvrtc_or_reason"]

ELF_SECTION_HEADERS = 40  # offset in an ELF header


def _folders(package: str) -> list[Path]:
    """Where a package lies that may have no `__init__`."""
    found = importlib.util.find_spec(package)
    return [Path(place) for place in (found.submodule_search_locations or [])] if found else []


@cache
def nvrtc_or_reason() -> tuple[ctypes.CDLL | None, str]:
    """Load NVRTC from its package; say why not, if it or the headers of CUB are not there."""
    libraries = [path for folder in _folders("nvidia") for path in folder.glob("*/lib/libnvrtc.so.*")]
    names = sorted(path for path in libraries if "alt" not in path.name)
    if not names or not _cub_includes():
        return None, "nvidia-cuda-nvrtc or cuda-cccl is not installed: pip install 'zeta-ops[cuda-compile]'"
    return ctypes.CDLL(str(names[-1])), ""


@cache
def _cub_includes() -> list[str]:
    """Options that find the headers of CUB, which CuPy brings along where kernels are compiled for use."""
    folders = [folder / "cccl" / "headers" / "include" for folder in _folders("cuda")]
    return [f"-I{folder}" for folder in folders if folder.is_dir()]


def compile_for(architecture: str, source: str, options: Sequence[str]) -> tuple[bytes, str]:
    """Compile a source that includes kernels; return the machine code and ptxas's report.

    Raises
    ------
    ValueError
        With the compiler's messages, if it finds an error.
    """
    library, _ = nvrtc_or_reason()
    assert library is not None
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    flags = [f"-arch={architecture}", "-std=c++17", f"-I{KERNELS}", *_cub_includes(), "--ptxas-options=-v", *options]
    status = library.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*map(str.encode, flags)))
    log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode()
    if status != 0:
        raise ValueError(log)
    return _text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program), log


def _text(get_size: ctypes._NamedFuncPointer, get: ctypes._NamedFuncPointer, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    memory = ctypes.create_string_buffer(size.value)
    get(program, memory)
    return memory.raw
