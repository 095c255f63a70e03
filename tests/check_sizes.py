#!/usr/bin/env python3
"""The tree outside tests/ keeps its shape: src/ holds main.c alone, every folder with sources is a library (a room of
CMakeLists.txt), no file is over 500 lines and no function over 80.

A file that must be longer, or whose function must, says why at its head in a comment that starts with "Long because";
a function can say it in the comment right above it. Tables are no functions.

    check_sizes.py [SOURCE]
"""
import ast
import pathlib
import re
import sys

MOST_LINES, MOST_FUNCTION_LINES, HEAD = 500, 80, 40
FOLDERS = ("base", "kernels", "dist", "src", "launch", "configs")
CODE = {".c", ".h", ".cc", ".cu", ".cuh"}
REASON = re.compile(r"^\s*(//|#|\*).*\bLong because\b", re.MULTILINE)
NO_FUNCTION = re.compile(r"^(typedef|struct|union|enum|namespace|extern \"C\")\b|=\s*\{?$|=\s*\{")


def c_functions(lines):
    """(first line, last line) of each function, by clang-format's layout: it ends with a brace in the first column."""
    start = None
    for i, line in enumerate(lines):
        if start is None and re.match(r"[A-Za-z_]", line):
            start = i
        if start is not None and i >= start and (line.rstrip().endswith((";", "\\")) or line.startswith("}")):
            body = line.startswith("}")
            if body and "(" in "".join(lines[start:i]) and not NO_FUNCTION.search(lines[start].rstrip()):
                yield start, i
            if body or not any(l.rstrip().endswith("{") for l in lines[start:i + 1]):
                start = None


def python_functions(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno - 1, node.end_lineno - 1


def comment_above(lines, start):
    first = start
    while first and re.match(r"\s*(//|#(?!\w)|template|@)", lines[first - 1]):
        first -= 1
    return "\n".join(lines[first:start])


def too_long(path, text):
    lines = text.split("\n")
    if REASON.search("\n".join(lines[:HEAD])):
        return
    if len(lines) - 1 > MOST_LINES:
        yield f"{path}: {len(lines) - 1} lines, more than {MOST_LINES}"
    for start, end in python_functions(text) if path.endswith(".py") else c_functions(lines):
        length = end - start + 1
        if length > MOST_FUNCTION_LINES and not REASON.search(comment_above(lines, start)):
            yield f"{path}:{start + 1}: {length} lines, more than {MOST_FUNCTION_LINES}: {lines[start].strip()}"


def out_of_place(files, cmake):
    """Rooms: add_room(NAME FOLDER ...). kernels is one room of many folders, whose sources CMake gathers."""
    rooms = set(re.findall(r"^add_room\(\w+ (\S+)", cmake, re.MULTILINE))
    for path in files:
        folder = str(pathlib.PurePosixPath(path).parent)
        if path.startswith("src/") and folder == "src" and path != "src/main.c":
            yield f"{path}: only main.c lies in src/ itself"
        elif re.match(r"(base|dist|src)/", path) and path != "src/main.c" and folder not in rooms:
            yield f"{path}: {folder} is no library: add_room in CMakeLists.txt"


def complaints(files, cmake):
    found = list(out_of_place(sorted(path for path in files if pathlib.PurePosixPath(path).suffix in CODE), cmake))
    for path, text in sorted(files.items()):
        found += too_long(path, text)
    return found


LONG_FUNCTION = "static int f(int a,\n             int b) {\n" + "  a++;\n" * 80 + "}\n"
PLANTED = [  # (path, text of a new file, part of the complaint or None)
    ("src/loose.c", "int x;\n", "only main.c"),
    ("src/nowhere/new.c", "int x;\n", "is no library"),
    ("dist/deep/new.h", "int x;\n", "is no library"),
    ("src/run/new.c", "int x;\n" * 501, "501 lines"),
    ("src/run/new.c", "int x;\n" * 500, None),
    ("src/run/new.c", "// new: Long because it is planted.\n" + "int x;\n" * 501, None),
    ("kernels/cuda/new.cu", LONG_FUNCTION, "83 lines"),
    ("kernels/cuda/new.cu", "// Long because it is planted.\n" + LONG_FUNCTION, None),
    ("kernels/cuda/new.cu", "template <int N>\n" + LONG_FUNCTION, "lines, more than 80"),
    ("src/run/new.c", "static const int table[] = {\n" + "    f(1),\n" * 90 + "};\n", None),
    ("launch/new.py", "def f():\n" + "    pass\n" * 80, "81 lines"),
]


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1]).resolve()
    files = {str(path.relative_to(root)): path.read_text(encoding="utf-8")
             for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in CODE | {".py"}}
    cmake = (root / "CMakeLists.txt").read_text()
    found = complaints(files, cmake)
    print(*found, sep="\n" if found else "", end="\n" if found else "")
    missed = 0
    for path, text, complaint in PLANTED:
        new = set(complaints({**files, path: text}, cmake)) - set(found)
        if any(complaint in line for line in new) if complaint else not new:
            continue
        missed += 1
        print(f"{path}, planted: expected {complaint or 'nothing'}, found {new or 'nothing'}")
    print(f"{len(files)} files, {len(found)} complaints; {len(PLANTED) - missed} of {len(PLANTED)} planted ones judged rightly")
    return 1 if found or missed or not files else 0


if __name__ == "__main__":
    sys.exit(main())
