"""Results as one table: what was found, and the targets beside it. What was not measured says so."""

COMPILED, EAGER = "max-autotune", "channels_last"
NOT_MEASURED = "not measured"


def targets(results):
    """Name, what is wanted, what was found, verdict."""
    parts = results["parts"]
    cases = parts.get("step", {}).get("cases", {})
    rows = []
    for name in ["cifar10-ddpm", "imagenet64-iddpm", "church256"]:
        case = cases.get(name, {})
        rows.append(ratio(f"step, {name}, against torch.compile", 1.25, speed(case, COMPILED)))
        rows.append(at_most(f"peak memory, {name}, of PyTorch's least", 1.0, memory(case)))
    rows.append(ratio("step, cifar10 batch 16, against eager", 2.0, speed(cases.get("cifar10-batch16", {}), EAGER)))
    rows.append(ratio("sampling, against diffusers + compile", 1.5, speed(parts.get("sample", {}), COMPILED)))
    seconds = parts.get("step", {}).get("start", {}).get("seconds")
    rows.append(at_most("start to first step, seconds", 5.0, seconds))
    return [{"target": name, "wanted": wanted, "found": found, "verdict": verdict} for name, wanted, found, verdict in rows]


def speed(case, mode):
    """How many times as many images a second; None unless both were measured, and on the same work."""
    if "ours" not in case or mode not in case.get("rivals", {}) or "work" in case.get("errors", {}):
        return None
    return case["ours"]["images_per_s"] / case["rivals"][mode]["images_per_s"]


def memory(case):
    """Our peak as a share of what the most frugal rival's tensors took."""
    peaks = [rival.get("peak_bytes") for rival in case.get("rivals", {}).values()]
    ours = case.get("ours", {}).get("peak_bytes")
    return ours / min(peaks) if ours and peaks and all(peaks) else None


def ratio(name, wanted, found):
    verdict = NOT_MEASURED if found is None else "met" if found >= wanted else "not met"
    return name, f">= {wanted:.2f}", found, verdict


def at_most(name, wanted, found):
    verdict = NOT_MEASURED if found is None else "met" if found <= wanted else "not met"
    return name, f"<= {wanted:.2f}", found, verdict


def table(results):
    """The whole report."""
    gpu = results["gpu"] or {}
    heading = ", ".join(f"{key} {value}" if key != "name" else str(value) for key, value in gpu.items()) or "no GPU"
    lines = [heading, f"{results['date']}, revision {results['pack'].get('revision')}, packed {results['pack'].get('packed')}"]
    python = results["parts"].get("doctor", {}).get("python")
    if python:
        lines.append(", ".join(f"{name} {version}" for name, version in python.items()))
    if results["rehearsal"]:
        lines.append("A REHEARSAL ON THE CPU: every number below means nothing")
    for section in [part_rows, step_rows, sample_rows, op_rows, data_rows, target_rows]:
        rows = section(results)
        if len(rows) > 1:
            lines += ["", *aligned(rows)]
    return "\n".join(lines) + "\n"


def part_rows(results):
    rows = [["part", "status", "seconds", ""]]
    for name, part in results["parts"].items():
        rows.append([name, part["status"], f"{part.get('seconds', 0):.0f}", part.get("error", "")[:150]])
    for name, program in results["parts"].get("tests", {}).get("programs", {}).items():
        rows.append([f"  {name}", program["status"], "", f"{program.get('passed', 0)} passed {program.get('error', '')}"[:150]])
    return rows


def measured_row(case, name, document):
    phases = document.get("phases_ms", {})
    peak = document.get("peak_bytes")
    return [case, name, f"{document['images_per_s']:.1f}", f"{document['median_ms']:.2f}",
            f"{document['min_ms']:.2f}" if "min_ms" in document else "", f"{document['max_ms']:.2f}" if "max_ms" in document else "",
            *(f"{phases[key]:.2f}" if key in phases else "" for key in ["data", "forward", "backward", "optimizer"]),
            f"{peak / 2**20:.0f}" if peak else ""]


MEASURED = ["images/s", "median ms", "min", "max", "data", "forward", "backward", "optimizer", "peak MiB"]


def step_rows(results):
    rows = [["step", "who", *MEASURED]]
    for name, case in results["parts"].get("step", {}).get("cases", {}).items():
        documents = {"ours": case.get("ours"), **case.get("rivals", {})}
        rows += [measured_row(name, who, document) for who, document in documents.items() if document]
        rows += [[name, who, "failed", *[""] * 7, text[:120]] for who, text in case.get("errors", {}).items()]
    return rows


def sample_rows(results):
    part = results["parts"].get("sample", {})
    documents = {"ours": part.get("ours"), **part.get("rivals", {})}
    return [["sampling", "who", *MEASURED], *(measured_row(part.get("config"), who, d) for who, d in documents.items() if d)]


def op_rows(results):
    """The dearest twenty."""
    rows = [["operation", "shape", "ms", "floor ms", "of floor"]]
    ops = sorted(results["parts"].get("ops", {}).get("ops", []), key=lambda op: -op["ms"])
    for op in ops[:20]:
        share = f"{op['of_floor']:.0%}" if op.get("of_floor") else ""
        rows.append([op["name"], str(op.get("shape", "")), f"{op['ms']:.4f}", f"{op['floor_ms']:.4f}", share])
    return rows


def data_rows(results):
    rows = [["waiting for images", "ms", "of the step"]]
    for name, wait in results["parts"].get("data", {}).get("wait", {}).items():
        rows.append([name, f"{wait['wait_ms']:.3f}", f"{wait['share']:.2%}"])
    return rows


def target_rows(results):
    rows = [["target", "wanted", "found", ""]]
    for target in results["targets"]:
        found = "" if target["found"] is None else f"{target['found']:.2f}"
        rows.append([target["target"], target["wanted"], found, target["verdict"]])
    return rows


def aligned(rows):
    """Columns as wide as their widest cell; the last may be ragged."""
    widths = [max(len(str(row[column])) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
