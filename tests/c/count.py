"""Instructions of the core's hot functions, counted by callgrind and compared with what is kept.

    python tests/c/count.py PROGRAM COMPILER [--update]

Unlike times, counts do not depend on what else the machine does. They do on the compiler: ``counts.json`` keeps them by
compiler, and one that is not there is not judged (status 77, which Meson calls a skip). Only instructions of the
program itself are counted, not those of the C library, which chooses its code by the processor at hand.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KEPT = Path(__file__).with_name("counts.json")
CALLS = 1000  # as in count.c
SKIP = 77
TOLERANCE = 0.03  # a point release of a compiler may choose otherwise here and there
SLACK = 1.0  # instructions a call


def count(program: Path) -> dict[str, float]:
    """Instructions a call, by row."""
    rows = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    with tempfile.TemporaryDirectory() as folder:
        return {row: round(own_cost(profile(program, row, folder), program.resolve()) / CALLS, 1) for row in rows}


def profile(program: Path, row: str, folder: str) -> str:
    """Callgrind's account of one row's function, and what that calls."""
    file = Path(folder, row)
    command = [
        "valgrind", "--tool=callgrind", f"--callgrind-out-file={file}", "--compress-strings=no",
        "--collect-atstart=no", f"--toggle-collect=row_{row}", str(program),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{program} failed under valgrind:\n{done.stderr}")
    return file.read_text()


def own_cost(profile: str, program: Path) -> int:
    """Instructions of the program's own functions in a callgrind profile."""
    total, ours, callee = 0, False, False
    for line in profile.splitlines():
        if line.startswith("ob="):
            ours = Path(line[3:]).resolve() == program
        elif line.startswith("calls="):
            callee = True  # the next line is what the called function cost, which stands with that function as well
        elif line[:1].isdigit() or line[:1] in "+-*":
            if ours and not callee and len(fields := line.split()) == 2:
                total += int(fields[1])
            callee = False
    return total


def main() -> int:
    program, compiler = Path(sys.argv[1]), sys.argv[2]
    if not shutil.which("valgrind"):
        print("valgrind is not here: nothing is counted")
        return SKIP
    kept = json.loads(KEPT.read_text())
    rows = count(program)
    if "--update" in sys.argv[3:]:
        KEPT.write_text(json.dumps({**kept, compiler: rows}, indent=2, sort_keys=True) + "\n")
    expected = kept.get(compiler, {})
    wrong = sorted(expected.keys() - rows.keys())
    for name, found in rows.items():
        was = expected.get(name)
        bad = was is None or abs(found - was) > max(SLACK, TOLERANCE * was)
        wrong += [name] * bad
        beside = "" if was is None else f"   kept {was:.1f}"
        print(f"{name:24}{found:10.1f}{beside}{'  <<<' if bad and expected else ''}")
    if "--update" in sys.argv[3:]:
        return 0
    if not expected:
        print(
            f"no counts are kept for {compiler}: there are {', '.join(kept) or 'none'}. `make count-update` keeps these"
        )
        return SKIP
    if wrong:
        print(f"not as kept: {', '.join(wrong)}. If that is meant, `make count-update`, and say why in the commit")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
