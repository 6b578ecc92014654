"""Pack golden files for the repository, compressed without loss.

    python -m comfyui_multitalk.dev.parity.pack FOLDER

The recorded files take 22 MB, and the repository has room for 15 MB. A third of their bytes are
eight-bit floats of few distinct values, so xz reduces them to 14.3 MB and nothing is left out.
The tests unpack them (`unpack`) beside the packed files, where git ignores them.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "parity" / "golden"
LIMIT_BYTES = 15_000_000
SUFFIX = ".xz"


def pack(source: Path, target: Path) -> int:
    """Compress every safetensors file of a folder into another; give the bytes written."""
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    for file in sorted(source.glob("*.safetensors")):
        packed = lzma.compress(file.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
        (target / f"{file.name}{SUFFIX}").write_bytes(packed)
        total += len(packed)
    return total


def unpack(folder: Path) -> None:
    """Decompress every packed file of a folder beside itself, unless that was done since."""
    for packed in folder.glob(f"*.safetensors{SUFFIX}"):
        file = packed.with_suffix("")
        if file.is_file() and file.stat().st_mtime_ns >= packed.stat().st_mtime_ns:
            continue
        partial = file.with_suffix(".part")
        partial.write_bytes(lzma.decompress(packed.read_bytes()))
        partial.replace(file)


def main() -> int:
    """Pack the folder given on the command line."""
    if len(sys.argv) != 2 or not list(Path(sys.argv[1]).glob("*.safetensors")):
        print("usage: python -m comfyui_multitalk.dev.parity.pack FOLDER", file=sys.stderr)
        return 2
    total = pack(Path(sys.argv[1]), GOLDEN)
    print(f"{total} bytes of {LIMIT_BYTES} in {GOLDEN}")
    return 0 if total <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
