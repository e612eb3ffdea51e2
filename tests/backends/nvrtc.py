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


@cache
def nvrtc_or_reason() -> tuple[ctypes.CDLL | None, str]:
    """Load NVRTC from its package; say why not, if it is not there."""
    found = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (found.submodule_search_locations or [])] if found else []
    names = sorted(path for place in places for path in place.glob("*/lib/libnvrtc.so.*") if "alt" not in path.name)
    if not names:
        return None, "nvidia-cuda-nvrtc is not installed: pip install 'zeta-ops[cuda-compile]'"
    return ctypes.CDLL(str(names[-1])), ""


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
    flags = [f"-arch={architecture}", "-std=c++17", f"-I{KERNELS}", "--ptxas-options=-v", *options]
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
