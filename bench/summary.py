"""What the measurements mean: medians, ratios, the figures that are asked for, and the tables of it all."""
import math
import os
import statistics

PLACES = ("native", "tcg", "vixen")


def read_list():
    """The workloads: name -> {group, kind, what}, in the order of the file `list`."""
    found = {}
    with open(os.path.join(os.path.dirname(os.path.realpath(__file__)), "list")) as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                name, group, kind, what = line.strip().split(None, 3)
                found[name] = {"group": group, "kind": kind, "what": what}
    return found


def medians(data):
    """name -> place -> median seconds, of data["results"][name][place] = [nanoseconds of each run]."""
    return {name: {place: statistics.median(ns) / 1e9 for place, ns in places.items() if ns}
            for name, places in data["cpu_results" if data["cpu_time"] else "results"].items()}


def geomean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def ratio(row, above, below):
    return row[above] / row[below] if row.get(above) and row.get(below) else None


def ratios(table, names, above, below):
    """[(ratio, name)] of those names that were measured in both places, smallest first."""
    found = [(ratio(table[n], above, below), n) for n in names if n in table]
    return sorted((r, n) for r, n in found if r is not None)


def targets(data, workloads):
    """[(what, measured or None, remark, 'least'|'most', bound)]: the figures the software CPU is held to."""
    table = medians(data)

    def group(*wanted):
        return [n for n, w in workloads.items() if w["group"] in wanted]

    faster = ratios(table, group("user", "fp", "system", "other", "boot"), "tcg", "vixen")
    user = ratios(table, group("user"), "vixen", "native")
    floating = ratios(table, group("fp"), "vixen", "native")
    system = ratios(table, group("system"), "vixen", "tcg")
    boot = ratios(table, group("boot"), "vixen", "tcg")

    def worst(pairs, at):
        return (pairs[at][0], pairs[at][1]) if pairs else (None, "")

    middle = statistics.median(r for r, _ in user) if user else None
    rows = [("speed against TCG, geometric mean", geomean([r for r, _ in faster]), "%d workloads" % len(faster),
             "least", 5.0),
            ("speed against TCG, worst", *worst(faster, 0), "least", 1.0),
            ("user mode: time against native, median", middle, "%d workloads" % len(user), "most", 2.0),
            ("FP, SIMD, crypto: time against native, worst", *worst(floating, -1), "most", 1.3),
            ("fork+exec, pipes, syscalls, faults: time against TCG, worst", *worst(system, -1), "most", 0.5),
            ("kernel boot to init: time against TCG", *worst(boot, -1), "most", 0.6)]
    return rows + [("two vCPUs: scaling of CPU-bound work", *scaling(data), "least", 1.8)]


def scaling(data):
    """Twice the work on two CPUs: 2.0 were perfect. Always of elapsed time, which needs two free CPUs: the remark is
    what the host's own two CPUs gave meanwhile."""
    table = medians(dict(data, cpu_time=False))

    def of(place):
        one, two = table.get("thread1", {}).get(place), table.get("thread2", {}).get(place)
        return 2 * one / two if one and two else None

    others = ["%s %.2f" % (place, of(place)) for place in ("native", "tcg") if of(place)]
    return of("vixen"), ", ".join(others)


def verdict(value, sense, bound):
    if value is None:
        return "not measured"
    return "met" if (value >= bound if sense == "least" else value <= bound) else "not met"


def table_rows(data):
    """Lists of cells: a heading, then a row for each workload that was tried."""
    table = medians(data)
    yield ["workload", "group", "native ms", "TCG ms", "Vixen ms", "TCG/native", "Vixen/native", "TCG/Vixen"]
    for name, info in read_list().items():
        if name not in data["results"]:
            continue
        row = table.get(name, {})
        times = ["%.1f" % (row[p] * 1e3) if p in row else "-" for p in PLACES]
        factors = [ratio(row, *pair) for pair in (("tcg", "native"), ("vixen", "native"), ("tcg", "vixen"))]
        yield [name, info["group"]] + times + ["%.2f" % f if f else "-" for f in factors]


def target_rows(data):
    yield ["what", "measured", "asked", "", "remark"]
    for what, value, remark, sense, bound in targets(data, read_list()):
        yield [what, "-" if value is None else "%.2f" % value, "at %s %.1f" % (sense, bound),
               verdict(value, sense, bound), remark]


def means(data):
    """Lines: geometric means of the ratios over all workloads."""
    table = medians(data)
    names = [n for n, w in read_list().items() if w["group"] not in ("scaling",)]
    for above, below, text in (("vixen", "native", "time against native: Vixen %.2f"),
                               ("tcg", "native", "time against native: TCG %.2f"),
                               ("tcg", "vixen", "Vixen is %.2f times as fast as TCG")):
        found = [r for r, _ in ratios(table, names, above, below)]
        if found:
            yield "geometric mean of %d workloads, %s" % (len(found), text % geomean(found))


def as_text(rows):
    rows = list(rows)
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    numeric = [all(not r[i] or r[i][0] in "-0123456789" for r in rows[1:]) for i in range(len(rows[0]))]
    return [" ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(r, widths, numeric)).rstrip() for r in rows]


def as_markdown(rows):
    lines = ["| " + " | ".join(r) + " |" for r in rows]
    return lines[:1] + ["|" + "---|" * lines[0].count(" | ") + "---|"] + lines[1:]


def conditions(data):
    return "%s, Linux %s, %s, Vixen %s, %s; medians of %s, runs: %d, vCPUs: %d" % (
        data["cpu"], data["host_kernel"].split("-")[0], data["qemu"] or "no QEMU", data["vixen"], data["date"],
        "the host's CPU time" if data["cpu_time"] else "elapsed time", data["runs"], data["cpus"])


def report(data, style=as_text):
    lines = [conditions(data), ""]
    for rows in (table_rows, target_rows):
        lines += style(rows(data)) + [""]
    lines += [("- " if style is as_markdown else "") + line for line in means(data)]
    return lines + ["failed: %s" % line for line in data["failures"]]


def write_between(path, markers, lines):
    """Replaces what stands between the two markers of a document."""
    begin, end = markers
    with open(path) as file:
        text = file.read()
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError("it has no markers '%s' and '%s'" % (begin, end))
    with open(path, "w") as file:
        file.write(head + begin + "\n" + "\n".join(lines) + "\n" + end + tail)


def write_into(path, data):
    write_between(path, ("<!-- bench/run writes this -->", "<!-- to here -->"), report(data, as_markdown))
