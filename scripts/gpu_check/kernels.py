"""One training step kernel by kernel, as Nsight Compute sees it: what is work, and what are gaps between kernels."""

import csv
import re

from . import comparisons, images
from .machine import tool
from .plan import Skipped
from .programs import Failed

METRIC = "gpu__time_duration.sum"
# What moves through memory is counted in the same pass; it stays in the log, to be held against the time.
BYTES = "dram__bytes_read.sum,dram__bytes_write.sum"
ANNOUNCED = re.compile(r'^==PROF== Profiling "', re.MULTILINE)
NANOSECONDS = {"ns": 1, "nsecond": 1, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9, "second": 1e9}
# The first pattern that is found in a kernel's name says what it belongs to: first ours (crates/kernels/cuda), then those of
# cuDNN 9 and cuBLAS 13 as far as their names are known. "other" is there to be read.
FAMILIES = [
    ("optimizer", r"^adamw|^gradient_norm"),
    ("group norm + SiLU", r"^group_norm|^settle_sums"),
    ("attention", r"^attention|flash|sdpa|fmha|softmax"),
    ("input and loss", r"^diffusion|^sampler|^embedding|^random"),
    ("resampling", r"^repeat_pixels|^sum_squares|^pixel_sum"),
    ("concatenation", r"^concat"),
    ("column sums", r"^column_sum"),
    ("copies and conversions", r"^cast|^convert|^fill|copy|memset"),
    ("convolution", r"conv2d|settle_gradients|bias_residual|conv|fprop|dgrad|wgrad|implicit|cudnn|nhwc|nchw"),
    ("linear", r"gemm|gemv|splitk|cublas|nvjet|cutlass|xmma"),
    ("elementwise", r"^activation|^add|^accumulate|^dropout|^scale|^silu"),
]


def kernels(check, record):
    """Runs a step under ncu; the card's clocks are left as they are. What was written before a time-out counts."""
    machine, case, found = check.machine, comparisons.cases(check)[0], check.results["kernels"]
    profiler = tool("ncu")
    if not profiler:
        raise Skipped("ncu was not found")
    config = comparisons.config(machine, case)
    step = [machine.programs["ddpm"], "bench", "step", config, "--repeat", 1, "--json",
            *comparisons.overrides(machine, case, images.folder(machine, config, case.batch))]
    found.update(config=case.config, batch_size=case.batch, precision=case.precision)

    def note(text):
        found.update(summed(rows(text)))
        replay = check.results["cases"].get(case.name, {}).get("ours", {}).get("median_ms")
        if replay and found["count"]:
            found.update(replay_ms=replay, gap_ms=replay - found["sum_ms"])
        check.save()
    outcome = machine.run(
        [profiler, "--clock-control", "none", "--cache-control", "none", "--profile-from-start", "off", "--csv", "--print-units",
         "base", "--metrics", f"{METRIC},{BYTES}", *step], progress=note, environment={"DDPM_GPU_PROFILE": "1"})
    note(outcome.stdout)
    found["complete"] = outcome.code == 0
    # Should it print its table at the end alone, this is what is known of a step that was cut off.
    found["announced"] = len(ANNOUNCED.findall(outcome.stdout + outcome.stderr))
    if outcome.code != 0 or not found["count"]:
        raise Failed(f"{outcome.why()}; {found['count']} kernels were seen, of {found['announced']} announced")


def rows(text):
    """(name, grid, nanoseconds) of each kernel in what ncu has printed, in order; half a line, and what is not its, is none.

    By the names in its header, in both of its layouts: a line for each metric, or a column for each with units below."""
    header, found = None, []
    for line in text.splitlines():
        if not line.startswith('"') or not line.endswith('"'):
            continue
        cells = next(csv.reader([line]))
        if "Kernel Name" in cells:
            header, unit = cells, None
            continue
        if header is None or len(cells) != len(header):
            continue
        row = dict(zip(header, cells))
        if METRIC in row:
            if not row["Kernel Name"]:
                unit = row[METRIC]
                continue
            value = row[METRIC]
        elif row.get("Metric Name") == METRIC:
            unit, value = row["Metric Unit"], row["Metric Value"]
        else:
            continue
        try:
            found.append((row["Kernel Name"], row.get("Grid Size", ""), float(value.replace(",", "")) * NANOSECONDS.get(unit, 1)))
        except ValueError:
            continue
    return found


def summed(found):
    """By name and by family, the dearest first."""
    return {"count": len(found), "sum_ms": sum(ns for _, _, ns in found) / 1e6,
            "by_family": groups(found, family), "by_name": groups(found, short)}


def groups(found, key):
    sums = {}
    for name, _, ns in found:
        group = sums.setdefault(key(name), {"count": 0, "ms": 0.0})
        group["count"] += 1
        group["ms"] += ns / 1e6
    return dict(sorted(sums.items(), key=lambda item: -item[1]["ms"]))


def short(name):
    """Without arguments, and no longer than a table can show."""
    return re.sub(r"\(.*", "", name)[:90]


def family(name):
    return next((family for family, pattern in FAMILIES if re.search(pattern, name, re.IGNORECASE)), "other")
