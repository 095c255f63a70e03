#!/usr/bin/env python3
"""Keeps the arrows of the design: who may include whom, and which libraries stand in one source only.

    check_includes.py [TREE]

Also plants a breach of each rule in a copy of the texts, and fails unless every one is caught.
"""
import pathlib
import re
import sys

FOLDERS = ("base", "src", "kernels", "dist")
ENDINGS = {".h", ".c", ".cc", ".cu", ".cuh", ".in"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)

# Files of a folder match the first pattern of their own; each project header that they include must match the second.
# base <- kernels <- dist <- model, text, config, measure <- run <- lab <- report <- contract <- commands <- main; synth knows model and dist; and what src/ sees of
# kernels/ is its interface and the formats.
SEEN = r"base/|kernels/(backend|build_hash|self_check)\.h|kernels/formats/(numerics|numerics_base|blocks|types|half|quantize)\.h"
ARROWS = [
    (r"base/", r"base/"),
    (r"src/main\.c", rf"{SEEN}|dist/|src/"),
    (r"src/config/", rf"{SEEN}|dist/transport_kind\.h|src/config/"),
    (r"src/model/", rf"{SEEN}|src/model/"),
    (r"src/text/", rf"{SEEN}|src/(model|text)/"),
    (r"src/measure/metrics\.[ch]", r"base/|src/measure/metrics\.h"),
    (r"src/measure/", rf"{SEEN}|src/measure/"),
    (r"src/synth/", rf"{SEEN}|dist/comm\.h|src/(model|synth)/"),
    (r"src/run/", rf"{SEEN}|dist/|src/(config|model|text|run)/"),
    (r"src/lab/experiment_files\.c", rf"{SEEN}|src/(config|lab)/|experiments\.h"),
    (r"src/lab/", rf"{SEEN}|dist/|src/(config|model|text|measure|run|lab)/"),
    (r"src/report/known_answers\.c", rf"{SEEN}|src/(config|report)/|known_answers_text\.h"),
    (r"src/report/job_report\.c", rf"{SEEN}|dist/|src/(config|model|text|measure|run|lab|report)/|build_info\.h"),
    (r"src/report/", rf"{SEEN}|dist/|src/(config|model|text|measure|run|lab|report)/"),
    (r"src/contract/metric\.[ch]", r"base/|src/contract/metric\.h|src/config/edit_distance\.h"),
    (r"src/contract/", rf"{SEEN}|dist/|src/(config|model|text|measure|run|lab|report|contract)/"),
    (r"src/commands/command\.c", rf"{SEEN}|dist/|src/|build_info\.h"),
    (r"src/commands/", rf"{SEEN}|dist/|src/"),
    (r"kernels/build_hash\.c", r"kernels/build_hash\.h|arithmetic_hash\.h"),
    (r"kernels/formats/", r"base/|kernels/formats/"),
    (r"kernels/cpu/", r"base/|kernels/(?!cuda/)"),
    (r"kernels/cuda/", r"base/|kernels/(?!cpu/)"),
    (r"kernels/build_hash\.c", r"kernels/build_hash\.h|arithmetic_hash\.h"),
    (r"kernels/table\.h\.in", r"kernels/cpu/row\.h"),
    (r"kernels/backend\.c", r"base/|kernels/(?!cpu/|cuda/)"),
    (r"kernels/", r"base/|kernels/(?!cpu/|cuda/|table\.h)"),
    (r"dist/table\.h\.in", r"dist/transport_ops\.h"),
    (r"dist/range_table\.h\.in", r"dist/range_ops\.h"),
    (r"dist/timeline\.c", r"base/|dist/(?!table\.h)"),
    (r"dist/transport\.c", r"base/|dist/(?!range_table\.h)"),
    (r"dist/", r"base/|dist/(?!table\.h|range_table\.h)"),
]
# A library's header, and the only files that may include it.
LIBRARIES = [
    (r"mpi\.h", r"dist/comm\.c"),
    (r"nccl\.h", r"dist/nccl\.c"),
    (r"(cuda|cublas|cooperative_groups|device_|mma\.h|nvml).*", r"kernels/cuda/.*|dist/nccl\.c"),
    (r"nvtx3/.*", r"dist/nvtx\.c"),
    (r"hwloc.*", r"dist/topology\.c"),
    (r"toml.*", r"src/config/config_toml\.cc"),
    (r"pcre2\.h", r"src/text/tokenizer_text\.c"),
    (r"jansson\.h", r"src/report/json_(tree|place)\.h|src/contract/(judging|checking)\.h"),
    (r"(fcntl|unistd|dirent|sys/mman|sys/stat|sys/socket)\.h", r"(?!kernels/).*"),  # kernels know no files
]
ONCE = [r"mpi\.h", r"nccl\.h", r"toml.*"]  # in one source of the tree at most
# Who may take a fault's text; judge.c makes it a line of a verdict: what the reader refuses in a report.
FAULT_PRINTERS = (r"src/commands/errors\.c|base/status\.[ch]|base/message_list\.c|"
                  r"src/contract/judge\.c|src/run/peer_links\.c")


def includes(text):
    return INCLUDE.findall(COMMENT.sub("", text))


def breaches(files):
    """files: {path: text}. A list of what breaks a rule."""
    found = []
    sources_of = {pattern: [] for pattern in ONCE}
    for path, text in sorted(files.items()):
        allowed = next((to for of, to in ARROWS if re.match(of, path)), None)
        if allowed is None:
            found.append(f"{path}: no rule says whom it may know")
            continue
        for bracket, header in includes(text):
            ours = bracket == '"'
            if ours and not re.match(allowed, header):
                found.append(f'{path}: must not include "{header}"')
            for library, places in LIBRARIES:
                if re.fullmatch(library, header) and not re.fullmatch(places, path):
                    found.append(f"{path}: must not include <{header}>")
            for pattern in ONCE:
                if re.fullmatch(pattern, header):
                    sources_of[pattern].append(path)
        if re.search(r"\bstatus_text\b", COMMENT.sub("", text)) and not re.fullmatch(FAULT_PRINTERS, path):
            found.append(f"{path}: only src/commands/errors.c prints an error")
    for pattern, paths in sources_of.items():
        if len(paths) > 1:
            found.append(f"{' and '.join(paths)}: only one source may include {pattern}")
    return found


# (path, line that breaks a rule, part of the complaint); a path that is not in the tree is a new file there
PLANTED = [
    ("base/memory.c", '#include "src/config/config.h"', "src/config/config.h"),
    ("base/memory.h", '#include "kernels/formats/numerics.h"', "kernels/formats/numerics.h"),
    ("src/measure/metrics.c", '#include "src/report/report.h"', "src/report/report.h"),
    ("src/measure/pair_statistics.c", '#include "src/report/report.h"', "src/report/report.h"),
    ("src/run/job.c", '#include "src/report/report.h"', "src/report/report.h"),
    ("src/run/job.c", '#include "src/lab/product_operations.h"', "src/lab/product_operations.h"),
    ("src/lab/product_case.c", '#include "src/report/report.h"', "src/report/report.h"),
    ("src/report/report_json.c", '#include "src/commands/parity.h"', "src/commands/parity.h"),
    ("src/report/report_json.c", '#include "src/contract/contract.h"', "src/contract/contract.h"),
    ("src/contract/judge.c", '#include "src/commands/verify.h"', "src/commands/verify.h"),
    ("src/model/model.c", '#include "src/text/tokenizer.h"', "src/text/tokenizer.h"),
    ("src/config/config.c", '#include "src/run/job.h"', "src/run/job.h"),
    ("kernels/formats/types.c", '#include "kernels/backend.h"', "kernels/backend.h"),
    ("src/run/forward.c", '#include "kernels/cpu/row.h"', "kernels/cpu/row.h"),
    ("src/run/forward.c", '#include "kernels/table.h"', "kernels/table.h"),
    ("src/run/forward.c", '#include "build_info.h"', "build_info.h"),
    ("src/run/forward.c", "#include <mpi.h>", "mpi.h"),
    ("src/model/model.c", '#  include <cuda_runtime.h>', "cuda_runtime.h"),
    ("src/config/config.c", "#include <toml++/toml.h>", "toml"),
    ("src/run/arm.c", "#include <hwloc.h>", "hwloc.h"),
    ("src/run/arm.c", 'puts(status_text());', "error"),
    ("src/run/new.c", '#include "tests/helper.h"', "tests/helper.h"),
    ("kernels/formats/types.c", '#include "src/model/gguf.h"', "src/model/gguf.h"),
    ("kernels/backend.h", '#include "dist/comm.h"', "dist/comm.h"),
    ("kernels/cpu/steps.c", "#include <mpi.h>", "mpi.h"),
    ("kernels/cpu/steps.c", "#include <fcntl.h>", "fcntl.h"),
    ("kernels/cpu/steps.c", '#include "kernels/cuda/device.cuh"', "kernels/cuda/device.cuh"),
    ("kernels/cuda/new.cu", '#include "kernels/cpu/row.h"', "kernels/cpu/row.h"),
    ("kernels/cuda/new.cu", "#include <nccl.h>", "nccl.h"),
    ("dist/exchange.c", '#include "src/run/placement.h"', "src/run/placement.h"),
    ("dist/exchange.c", '#include "kernels/backend.h"', "kernels/backend.h"),
    ("dist/exchange.c", "#include <mpi.h>", "mpi.h"),
    ("dist/exchange.c", '#include "dist/table.h"', "dist/table.h"),
    ("dist/exchange.c", '#include "dist/range_table.h"', "dist/range_table.h"),
    ("dist/timeline.c", "#include <nvtx3/nvToolsExt.h>", "nvtx3/nvToolsExt.h"),
    ("dist/transport.c", "#include <nccl.h>", "nccl.h"),
    ("dist/transport.c", "#include <cuda_runtime_api.h>", "cuda_runtime_api.h"),
    ("dist/nccl.c", "#include <mpi.h>", "mpi.h"),
    ("dist/exchange.c", "#include <nccl.h>", "nccl.h"),
    ("dist/exchange.c", "#include <cuda.h>", "cuda.h"),
    ("dist/comm.c", '#include "row.h"', "row.h"),
]


def tree_files(root):
    return {str(path.relative_to(root)): path.read_text()
            for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in ENDINGS}


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    files = tree_files(root)
    found = breaches(files)
    for line in found:
        print(line)
    missed = 0
    for path, line, complaint in PLANTED:
        text = files.get(path, "")
        new = set(breaches({**files, path: f"{text}\n{line}\n"})) - set(found)
        if not any(path in text and complaint in text for text in new):
            print(f"not caught: {line} in {path}")
            missed += 1
    print(f"{len(files)} files, {len(found)} breaches; {len(PLANTED) - missed} of {len(PLANTED)} planted ones caught")
    return 1 if found or missed or not files else 0


if __name__ == "__main__":
    sys.exit(main())
