"""Compiles every kernel for every architecture and element type, with no GPU and no driver.

Needs the wheels `nvidia-cuda-nvrtc` and `nvidia-cuda-nvcc` (13.0 or newer), which hold NVRTC and
ptxas. Prints registers and spilled bytes of each kernel for one architecture; fails where a kernel
does not compile, or where one that runs at every decoded token spills registers to memory.

    python kernels/cuda/compile_check.py [ARCHITECTURE ...]
    python kernels/cuda/compile_check.py --nvrtc FOLDER

The second form only asks whether another NVRTC, an older one, takes every kernel.
"""

import ctypes
import re
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
ARCHITECTURES = ["sm_80", "sm_89", "sm_90a", "sm_100a"]
SHOWN = "sm_90a"
ELEMENTS = ["BF16", "F16", "F32"]
TENSOR_CORES = {  # not compiled for f32
    "attention_decode.cu",
    "attention_groups.cu",
    "attention_tiles.cu",
    "gemm_groups.cu",
    "gemm_stream.cu",
    "lora_decode_expand.cu",
    "lora_decode_gated.cu",
    "lora_decode_shrink.cu",
    "lora_gated.cu",
    "lora_gated_few.cu",
    "lora_long_expand.cu",
    "lora_long_norm.cu",
    "lora_long_shrink.cu",
    "lora_rows.cu",
}
HOPPER = {"gemm_stream.cu", "lora_long_norm.cu"}  # not compiled for cards before it
WARPGROUPS = {"attention_groups.cu", "gemm_groups.cu"}  # compiled for Hopper, and no other
PREFILL_ONLY = {"attention_tiles.cu", "lora_rows.cu"}  # may spill


def find(pattern, root=Path(sysconfig.get_paths()["purelib"]) / "nvidia"):
    """A file of the NVIDIA wheels."""
    found = sorted(root.glob(f"**/{pattern}"))
    if not found:
        sys.exit(f"no {pattern} below {root}: pip install nvidia-cuda-nvrtc nvidia-cuda-nvcc")
    return found[0]


class Nvrtc:
    """As much of NVRTC as compiles one source."""

    def __init__(self, *root):
        path = find("libnvrtc.so.*", *root)
        ctypes.CDLL(str(find("libnvrtc-builtins.so.*", *root)), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(path))

    def version(self):
        """Such as 13.0."""
        parts = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(*map(ctypes.byref, parts))
        return ".".join(str(part.value) for part in parts)

    def text(self, program, what):
        """The program's PTX or log."""
        size = ctypes.c_size_t()
        getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(self.library, f"nvrtcGet{what}")(program, text)
        return text.value.decode()

    def ptx(self, source, element, architecture):
        """PTX of one source, or an error that names it."""
        program = ctypes.c_void_p()
        code, name = source.read_bytes(), source.name.encode()
        self.library.nvrtcCreateProgram(ctypes.byref(program), code, name, 0, None, None)
        target = architecture.replace("sm_", "compute_")
        options = [f"-arch={target}", "-std=c++17", f"-DELEMENT_{element}", f"-I{FOLDER}"]
        options = [option.encode() for option in options]
        array = (ctypes.c_char_p * len(options))(*options)
        if self.library.nvrtcCompileProgram(program, len(options), array) != 0:
            log = self.text(program, "ProgramLog")
            sys.exit(f"{source.name} for {architecture}, {element}:\n{log}")
        return self.text(program, "PTX")


def assemble(ptxas, ptx, architecture):
    """`(kernel, registers, spilled bytes)` of every kernel of a PTX text."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [ptxas, "-v", f"-arch={architecture}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=False)
    if report.returncode != 0:
        sys.exit(f"ptxas for {architecture}:\n{report.stderr}")
    pattern = r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    found = re.findall(pattern, report.stderr, re.DOTALL)
    return [(name, int(registers), int(spilled)) for name, spilled, registers in found]


def jobs_for(architectures):
    """`(source, element, architecture)` of everything that is compiled for these."""
    return [
        (source, element, architecture)
        for source in sorted(FOLDER.glob("*.cu"))
        for element in ELEMENTS
        for architecture in architectures
        if element != "F32" or source.name not in TENSOR_CORES
        if architecture not in ("sm_80", "sm_89") or source.name not in HOPPER
        if architecture == "sm_90a" or source.name not in WARPGROUPS
    ]


def check_other(nvrtc):
    """Whether an NVRTC that may not know the newest cards takes every kernel."""
    jobs = jobs_for(["sm_80", "sm_90a"])
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: nvrtc.ptx(*job), jobs))
    print(f"{len(jobs)} compilations by NVRTC {nvrtc.version()}")


def main():
    if sys.argv[1:2] == ["--nvrtc"]:
        return check_other(Nvrtc(Path(sys.argv[2])))
    nvrtc, ptxas = Nvrtc(), str(find("bin/ptxas"))
    jobs = jobs_for(sys.argv[1:] or ARCHITECTURES)

    def check(job):
        source, element, architecture = job
        return job, assemble(ptxas, nvrtc.ptx(source, element, architecture), architecture)

    spilling = []
    with ThreadPoolExecutor() as pool:
        for (source, element, architecture), kernels in pool.map(check, jobs):
            for name, registers, spilled in kernels:
                if architecture == SHOWN and element != "F16":
                    print(f"{name:24} {element:4} {registers:4} registers {spilled:4} spilled")
                if spilled and source.name not in PREFILL_ONLY:
                    spilling.append(f"{name} {element} {architecture}: {spilled} bytes")
    if spilling:
        sys.exit("decode kernels that spill:\n" + "\n".join(spilling))
    print(f"{len(jobs)} compilations, no decode kernel spills")
    return None


if __name__ == "__main__":
    main()
