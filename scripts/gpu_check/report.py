"""Results as one table: what was found, and the targets beside it. What was not measured says so."""

import textwrap

COMPILED, EAGER = "reduce-overhead", "channels_last"
NOT_MEASURED = "not measured"
WIDTH = 150
MOST_OPERATIONS, MOST_KERNELS = 16, 14


def targets(results):
    """Name, what is wanted, what was found, verdict."""
    cases, rows = results["cases"], []
    for name in ["cifar10-ddpm", "imagenet64-iddpm", "church256"]:
        case = cases.get(name, {})
        rows.append(ratio(f"step, {name}, against torch.compile", 1.25, speed(case, COMPILED)))
        rows.append(at_most(f"peak memory, {name}, of PyTorch's least", 1.0, memory(case)))
    rows.append(ratio("step, cifar10 batch 16, against eager", 2.0, speed(cases.get("cifar10-batch16", {}), EAGER)))
    rows.append(ratio("sampling, against diffusers + compile", 1.2, speed(results["sample"], COMPILED)))
    rows.append(at_most("start to first step, seconds", 5.0, results["train"].get("first_step_seconds")))
    return [{"target": name, "wanted": wanted, "found": found, "verdict": verdict} for name, wanted, found, verdict in rows]


def speed(case, mode):
    """How many times as many images a second; None unless both were measured, and on the same work."""
    if "ours" not in case or mode not in case.get("rivals", {}) or "work" in case.get("errors", {}):
        return None
    return case["ours"]["images_per_s"] / case["rivals"][mode]["images_per_s"]


def memory(case):
    """Our peak as a share of what the most frugal rival took: its tensors, or, where a CUDA graph keeps them out of that count,
    what its allocator holds."""
    peaks = [rival.get("peak_reserved_bytes" if mode == COMPILED else "peak_bytes") for mode, rival in case.get("rivals", {}).items()]
    ours = case.get("ours", {}).get("peak_bytes")
    return ours / min(peaks) if ours and peaks and all(peaks) else None


def ratio(name, wanted, found):
    verdict = NOT_MEASURED if found is None else "met" if found >= wanted else "not met"
    return name, f">= {wanted:.2f}", found, verdict


def at_most(name, wanted, found):
    verdict = NOT_MEASURED if found is None else "met" if found <= wanted else "not met"
    return name, f"<= {wanted:.2f}", found, verdict


def table(results):
    """The whole report; what matters most stands last, where the end of an output shows it."""
    lines = heading(results)
    lines += ["", *part_lines(results), *trouble_lines(results)]
    for section in [train_rows, op_rows, attention_rows, family_rows, kernel_rows, data_rows, step_rows, target_rows]:
        try:
            rows = section(results)
        except Exception as error:  # noqa: BLE001: some program's answer lacks what is shown of it; the other sections stay
            lines += ["", f"gpu-check.json has what cannot be shown here ({section.__name__}): {type(error).__name__}: {error}"]
            continue
        if len(rows) > 1:
            lines += ["", *aligned(rows)]
    return "\n".join(line[:WIDTH] for line in lines) + "\n"


def heading(results):
    gpu, pack = results["gpu"] or {}, results["pack"]
    lines = [", ".join(f"{key} {value}" if key != "name" else str(value) for key, value in gpu.items()) or "no GPU",
             f"{results['date']}, revision {pack.get('revision')}, packed {pack.get('packed')}"]
    if roofs := results["roofs"]:
        lines.append(f"roofs, {roofs['source']} ({roofs.get('device', 'PyTorch')}): {roofs['flop_per_s'] / 1e12:.0f} TFLOP/s bf16, "
                     f"{roofs['bytes_per_s'] / 1e12:.2f} TB/s")
    if results["rehearsal"]:
        lines.append(f"A REHEARSAL ON {results['rehearsal'].upper()}: every number below means nothing")
    for switch, why in results["off"].items():
        lines += textwrap.wrap(f"TURNED OFF for what followed: {switch} ({why})", WIDTH, subsequent_indent="  ")
    return lines


def part_lines(results):
    """A line for each part: which of its pieces became what."""
    parts, lines = {}, []
    for name, piece in results["pieces"].items():
        parts.setdefault(piece["part"], {}).setdefault(piece["status"], []).append((name, piece.get("seconds", 0)))
    for part, found in parts.items():
        seconds = sum(second for pieces in found.values() for _, second in pieces)
        said = "; ".join(f"{status}: {', '.join(short(name) for name, _ in pieces)}" for status, pieces in found.items())
        lines += textwrap.wrap(f"{part:10}{seconds:5.0f} s  {said}", WIDTH, subsequent_indent=" " * 19)
    return lines


def short(name):
    """Without the part's name, which stands before it."""
    return name.removeprefix("smoke: ").removeprefix("tests: ").removeprefix("memory: ")


def trouble_lines(results):
    """Every piece that failed and every failure that is explained, with what was said; why others were not run, once."""
    lines, passed_over = [], {}
    for name, piece in results["pieces"].items():
        if piece["status"] in ("failed", "interrupted"):
            lines.append(f"{name}: {piece['status']}: {piece['why']}")
        elif piece["status"] in ("skipped", "not run") and piece["why"] != "not reached":
            passed_over.setdefault((piece["status"], piece["why"]), []).append(name)
        lines += [f"{name}: explained: {test}: {why}" for test, why in (piece.get("explained") or {}).items()]
        lines += [f"{name}: {key}: {', '.join(' '.join([test, found['status']]) for test, found in tests.items())}"
                  for key, tests in piece.items() if key.startswith("without ")]
    lines += [f"{status}, for {why}: {', '.join(names) if len(names) < 4 else f'{len(names)} pieces'}"
              for (status, why), names in passed_over.items()]
    shown = [wrapped for line in lines for wrapped in textwrap.wrap(line[:3 * WIDTH], WIDTH, subsequent_indent="    ")]
    return ["", *shown] if shown else []


def train_rows(results):
    train, rows = results["train"], [["the quick start", ""]]
    if last := train.get("last"):
        rows.append(["last step in its metrics", f"{last.get('step')}, loss {last.get('loss'):.4f}, "
                     f"{last.get('timing', {}).get('images_per_s', 0):.0f} images/s"])
    if train.get("whole_seconds"):
        rows.append(["from its start to its end", f"{train['whole_seconds']:.1f} s for {train.get('steps')} steps and its pictures"])
    if train.get("picture"):
        rows.append(["picture", train["picture"]])
    return rows


def measured_row(case, name, document):
    phases = document.get("phases_ms", {})
    peak = document.get("peak_bytes")
    return [case, name, f"{document['images_per_s']:.1f}", f"{document['median_ms']:.2f}",
            f"{document['min_ms']:.2f}" if "min_ms" in document else "", f"{document['max_ms']:.2f}" if "max_ms" in document else "",
            *(f"{phases[key]:.2f}" if key in phases else "" for key in ["data", "forward", "backward", "optimizer"]),
            f"{peak / 2**20:.0f}" if peak else "", " ".join(f"{ms:.2f}" for ms in document.get("rounds_ms", []))]


MEASURED = ["images/s", "median ms", "min", "max", "data", "forward", "backward", "optimizer", "peak MiB", "rounds"]


def step_rows(results):
    rows = [["step", "who", *MEASURED]]
    sampled = {"sampling": results["sample"]} if results["sample"] else {}
    for name, case in {**results["cases"], **sampled}.items():
        documents = {"ours": case.get("ours"), **case.get("rivals", {})}
        rows += [measured_row(name, who, document) for who, document in documents.items() if document]
        rows += [[name, who, "failed", *[""] * 8, text[:40]] for who, text in case.get("errors", {}).items()]
    return rows


def op_rows(results):
    """Those with the most time to win, were each at its floor."""
    rows = [["operation", "shape", "count", "ms", "floor ms", "of floor", "to win, ms a step"]]
    for op in results["ops"].get("ops", []):
        op["to_win_ms"] = max(0.0, op["ms"] - op["floor_ms"]) * op.get("count", 1)
    for op in sorted(results["ops"].get("ops", []), key=lambda op: -op["to_win_ms"])[:MOST_OPERATIONS]:
        share = f"{op['of_floor']:.0%}" if op.get("of_floor") else ""
        rows.append([op["name"], str(op.get("shape", ""))[:60], str(op.get("count", "")), f"{op['ms']:.4f}", f"{op['floor_ms']:.4f}",
                     share, f"{op['to_win_ms']:.3f}"])
    return rows


def attention_rows(results):
    """Ours stands among the operations, unless it is too near its floor to be shown there; so it is shown here once more."""
    ours = [op for op in results["ops"].get("ops", []) if op["name"].startswith("attention ")]
    rows = [["attention", "who", "forward us", "backward us"]]
    for name, found in results["attention"].get("backends", {}).items():
        times = [found["error"][:60], ""] if "error" in found else [f"{found['forward_us']:.1f}", f"{found['backward_us']:.1f}"]
        rows.append([str(results["attention"].get("shape", "")), f"PyTorch, {name}", *times])
    if len(rows) > 1:
        for shape in dict.fromkeys(str(op.get("shape", "")) for op in ours):
            us = {op["name"].split()[-1]: op["ms"] * 1e3 for op in ours if str(op.get("shape", "")) == shape}
            rows.append([shape[:60], "ours", *(f"{us[way]:.1f}" if way in us else "" for way in ["forward", "backward"])])
    return rows


def family_rows(results):
    found = results["kernels"]
    rows = [["one step by kernel", "launches", "ms"]]
    if not found.get("count"):
        return rows
    rows += [[name, str(group["count"]), f"{group['ms']:.3f}"] for name, group in found["by_family"].items()]
    rows.append(["sum" if found.get("complete") else "sum of what was seen before the end", str(found["count"]), f"{found['sum_ms']:.3f}"])
    if "gap_ms" in found:
        rows += [["a replayed step", "", f"{found['replay_ms']:.3f}"], ["gaps: the replay less the sum", "", f"{found['gap_ms']:.3f}"]]
    return rows


def kernel_rows(results):
    """The dearest."""
    names = list(results["kernels"].get("by_name", {}).items())[:MOST_KERNELS]
    return [["kernel", "launches", "ms"], *([name, str(group["count"]), f"{group['ms']:.3f}"] for name, group in names)]


def data_rows(results):
    rows = [["waiting for images", "ms", "of the step"]]
    for name, wait in results["data"].get("wait", {}).items():
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
