#!/usr/bin/env python3
"""How large the program is under several profiles, how fast it starts, and how long it takes to build.

    scripts/experiments/binary_size.py [--build] [--features LIST] [VARIANT…]

measures the variants that are built, or builds them first. Each has an artefact folder of its own, since nearly everything is compiled anew: 5 to 20
minutes each on two cores. Start-up is that of `visionprefer --help`, the fastest and the median of 30.
"""
import argparse
import lzma
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# Profile by name, and what it changes of `release`. `dist` is the one in Cargo.toml.
VARIANTS = {
    "release": [],
    "stripped": ["strip=true"],
    "thin": ["strip=true", 'lto="thin"'],
    "dist": None,
    "small": ["strip=true", 'lto="thin"', "codegen-units=1", 'opt-level="s"'],
}


def build(name, features):
    command = ["cargo", "build", "--locked", "--bin", "visionprefer", "--profile", name, *features]
    if name not in ("release", "dist"):
        for setting in ['inherits="release"', *VARIANTS[name]]:
            command += ["--config", f"profile.{name}.{setting}"]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    return time.monotonic() - began


def starts(program, times=30):
    """Seconds of `--help`, fastest and median."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([program, "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return min(seconds), statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--features", help="as Cargo takes them")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    args = parser.parse_args()
    unknown = [name for name in args.variants if name not in VARIANTS]
    if unknown:
        sys.exit(f"no variant {unknown[0]} (known: {', '.join(VARIANTS)})")
    features = ["--features", args.features] if args.features else []
    print("| profile | size, MiB | packed by xz, MiB | start-up, ms (fastest, median) | build, minutes |\n|---|---|---|---|---|")
    for name in args.variants or VARIANTS:
        seconds = build(name, features) if args.build else None
        program = ROOT / TARGET / name / "visionprefer"
        if not program.is_file():
            print(f"{program} is not there; --build builds it", file=sys.stderr)
            continue
        fastest, median = (1000 * value for value in starts(program))
        size, packed = program.stat().st_size / 2**20, len(lzma.compress(program.read_bytes())) / 2**20
        minutes = "" if seconds is None else f"{seconds / 60:.1f}"
        print(f"| `{name}` | {size:.1f} | {packed:.1f} | {fastest:.1f}, {median:.1f} | {minutes} |", flush=True)


main()
