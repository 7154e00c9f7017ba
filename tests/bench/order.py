"""Writes a linker script that puts the functions which a run called side by side.

Usage: order.py CALLGRIND-OUTPUT BINARY > idle.ld
"""

import collections
import re
import subprocess
import sys


def called(path):
    """Mangled names of the functions that ran."""
    names, ran = {}, set()
    with open(path, errors="replace") as lines:
        for line in lines:
            found = re.match(r"(c?)fn=\((\d+)\)(?: (.*))?$", line)
            if not found:
                continue
            callee, number, name = found.groups()
            if name:
                names[number] = re.sub(r"'\d+$", "", name.strip())
            if not callee:
                ran.add(number)
    return {names[number] for number in ran if number in names}


def pattern(name):
    """A name without what changes from build to build: hashes of functions and of crates."""
    name = re.sub(r"17h[0-9a-f]{16}E(\.llvm\.\d+)?$", "17h*", name)
    return re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name)


def main():
    ran = called(sys.argv[1])
    listed = subprocess.run(["nm", "-S", "--defined-only", sys.argv[2]], capture_output=True, text=True, check=True)
    sizes = collections.defaultdict(lambda: [0, 0])
    for line in listed.stdout.splitlines():
        fields = line.split(None, 3)
        if len(fields) == 4 and fields[2] in "tT":
            size = sizes[pattern(fields[3])]
            size[0] += int(fields[1], 16) if fields[3] in ran else 0
            size[1] += int(fields[1], 16)
    # Patterns that take in much that did not run come last.
    order = sorted((1 - used / every, name) for name, (used, every) in sizes.items() if used)
    print("/* What an idle connector runs, by tests/bench/order. */")
    print("SECTIONS { .text.idle : {")
    for _, name in order:
        # Those that the compiler takes for seldom called are in `.text.unlikely.NAME`.
        print(f"*(.text*.{name})")
    print("} } INSERT BEFORE .text;")


main()
