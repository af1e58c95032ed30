"""Runs kernels on the host, without a GPU: blocks, warps, barriers, copies that land in any order.

What a GPU does by itself has a twin in this folder (`device.h`, `mma.cuh`, `bulk.cuh`,
`chain.cuh`, `cluster.cuh`); the kernels are compiled as they are, but for single instructions in assembly. Finds
wrong results, reads of what nobody wrote, and waits that never end; nothing about speed. Needs a
C++ compiler.

    python kernels/tests/emulator/run.py [SEED ...]
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
KERNELS = FOLDER.parent.parent / "cuda"
# Instructions that the kernels write in assembly, and what does the same here.
INSTRUCTIONS = [
    (
        r'extern __shared__ (?:__align__\(\d+\) )?([\w ]+?) (\w+)\[\];',
        r"\1* \2 = reinterpret_cast<\1*>(device.own().shared);",
    ),
    (
        r'__shared__ (\w+(?:<\w+>)?) (\w+)((?:\[\w+\])*);',
        r"auto& \2 = static_shared<\1\3>();",
    ),
    (r'asm volatile\("prefetch\.[^;]*;" ::"l"\([^;]*\)\);', ";"),
    (r'asm volatile\("bar\.sync (\d), (\d+);" ::: "memory"\);', r"named_sync(\1, \2);"),
    (
        r'asm volatile\("bar\.(sync|arrive) (\d), %0;" ::"n"\(([^)]*)\) : "memory"\);',
        r"named_\1(\2, \3);",
    ),
    (r'asm volatile\("bar\.arrive (\d), (\d+);" ::: "memory"\);', r"named_arrive(\1, \2);"),
    (r'asm\("ex2\.approx[^;]*;[^;]*;', "power = exp2f(x);"),
    (r'asm\("cvt\.rn\.bf16\.f32[^;]*;[^;]*;', "out.bits = bf16_bits(x);"),
    (
        r'asm\("cvt\.rn\.bf16x2[^;]*;[^;]*;',
        "both = bf16_bits(low) | u32{bf16_bits(high)} << 16;",
    ),
    (r'asm\("cvt\.[^;]*;[^;]*;', 'fail("only bf16");'),
]


def translate(source, folder):
    """Writes a file of the kernels as the host's compiler takes it."""
    text = source.read_text()
    for pattern, here in INSTRUCTIONS:
        text = re.sub(pattern, here, text)
    (folder / source.name).write_text(text)


def main():
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        print("skipped kernels on the host: there is no C++ compiler")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in [*KERNELS.glob("*.cuh"), *KERNELS.glob("*.cu")]:
            translate(source, folder)
        for twin in [*FOLDER.glob("*.cuh"), *FOLDER.glob("*.h")]:
            shutil.copy(twin, folder)
        for test in sorted(FOLDER.glob("*.cpp")):
            program = folder / test.stem
            options = ["-O1", "-std=c++20", "-w", "-Wno-psabi", f"-I{folder}", "-o", str(program)]
            subprocess.run([compiler, *options, str(test)], check=True)
            for seed in sys.argv[1:] or ["1", "2"]:
                if subprocess.run([str(program), seed], check=False).returncode != 0:
                    sys.exit(f"{test.name} failed; seed {seed}")


if __name__ == "__main__":
    main()
