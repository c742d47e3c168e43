"""Claim: second-order regularizers by one adjoint and streamed tangents cost less than every other way."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import style

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
OURS = "nfm_theory"
CASES = {
    "mlp64": "MLP, d = 64",
    "mlp784": "MLP, d = 784",
    "cnn": "CNN",
    "digits_resnet": "ResNet of the digits",
    "preact_resnet18": "PreActResNet-18",
    "preact_resnet18_stage1": "PreActResNet-18, stage 1",
    "preact_resnet18_stage2": "PreActResNet-18, stage 2",
    "vit": "ViT",
}
#: Methods that get a color of their own; what starts alike is one of them.
FAMILIES = {
    OURS: (style.BLUE, "o"),
    "double backward": (style.ORANGE, "s"),
    "jvp(grad)": (style.GREEN, "^"),
    "vmap(hessian)": (style.PINK, "D"),
    "Taylor mode": ("#E69F00", "v"),
    "other": (style.INK, "x"),
}
#: Quantities that every case has peers for.
SHOWN = (
    "R2+R3, 4 probes",
    "R2+R3, data, exact",
    "R2+R3, data + additive, exact",
    "training, 1 probe",
    "training, 8 probes",
    "C3, data directions",
)


def family(method: str) -> str:
    """The entry of `FAMILIES` a method belongs to."""
    if method.startswith("TaylorRegularizer"):
        return OURS
    return next((name for name in FAMILIES if method.startswith(name)), "other")


def _groups(costs: dict) -> dict[tuple[str, str], list[dict]]:
    """Measured cells by case and quantity, in the order of `CASES` and `SHOWN`."""
    groups = {(case, quantity): [] for case in CASES for quantity in SHOWN}
    for cell in costs["cells"]:
        if "time" in cell and (cell["case"], cell["quantity"]) in groups:
            groups[cell["case"], cell["quantity"]].append(cell)
    return {key: cells for key, cells in groups.items() if cells}


def draw(costs: dict) -> Figure:
    """Time of every method as a multiple of a forward pass (training: of a training step).

    Args:
        costs: what `python -m benchmarks.estimators --json` writes.
    """
    groups = _groups(costs)
    with style.style():
        figure = Figure(figsize=(8.2, 0.9 + 0.27 * len(groups)), layout="constrained")
        ax, other = figure.subplots(1, 2, sharey=True)
        for row, cells in enumerate(groups.values()):
            for cell in sorted(cells, key=lambda c: family(c["method"]) == OURS):
                color, marker = FAMILIES[family(cell["method"])]
                size = 7 if family(cell["method"]) == OURS else 4.5
                ax.plot(cell["time"], row, marker, color=color, ms=size)
                other.plot(cell["memory"], row, marker, color=color, ms=size)
        ax.set_yticks(range(len(groups)), [f"{CASES[case]}: {quantity}" for case, quantity in groups])
        ax.invert_yaxis()
        ax.set(xscale="log", xlabel="time")
        other.set(xscale="log", xlabel="peak memory")
        handles = [Line2D([], [], color=c, marker=m, ls="", label=name) for name, (c, m) in FAMILIES.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def rows(costs: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: ours, the fastest peer of each family, and what is missing, per quantity."""
    header = ["case", "quantity", *FAMILIES]
    body = []
    for (case, quantity), cells in _groups(costs).items():
        best = {}
        for cell in cells:
            name = family(cell["method"])
            if name not in best or cell["time"] < best[name]["time"]:
                best[name] = cell
        texts = [f"{best[n]['time']:.3g} ({best[n]['memory']:.2g})" if n in best else "–" for n in FAMILIES]
        body.append([CASES[case], quantity, *texts])
    return header, body


def arithmetic_rows(costs: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: of each peer the least arithmetic of its family over ours, and the ratio of the times.

    Empty without `python -m benchmarks.estimators.arithmetic`.
    """
    peers = [name for name in FAMILIES if name not in (OURS, "other")]
    header, body = ["case", "quantity", OURS, *peers], []
    for (case, quantity), cells in _groups(costs).items():
        counted = [c for c in cells if "flops" in c]
        ours = min((c for c in counted if c["method"] == OURS), key=lambda c: c["flops"], default=None)
        if ours is None:
            continue
        texts = []
        for name in peers:
            of_family = [c for c in counted if family(c["method"]) == name]
            less, quickest = (min((c[key] / ours[key] for c in of_family), default=None) for key in ("flops", "time"))
            texts.append("–" if less is None else f"× {less:.3g} (× {quickest:.3g})")
        body.append([CASES[case], quantity, f"{ours['flops']:.3g} ({ours['time']:.3g})", *texts])
    return header, body


def variant_rows(costs: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: peers that were measured in several ways, as multiples of ours.

    Args:
        costs: what `python -m benchmarks.estimators --json` writes.
    """
    body = []
    for (case, quantity), cells in _groups(costs).items():
        known = {cell["method"]: cell for cell in cells}
        for name in (name for name in known if name.endswith(", chunks") and OURS in known):
            way = name.removesuffix(", chunks")
            whole = next((n for n in (f"{way}, vmap", f"{way}, collapsed", way) if n in known), None)
            variants = (whole, name, f"{way}, every output")
            if sum(variant in known for variant in variants) > 1:
                ratios = [
                    {k: known[n][k] / known[OURS][k] for k in ("time", "memory")} if n in known else None
                    for n in variants
                ]
                texts = ("–" if r is None else f"× {r['time']:.3g} (× {r['memory']:.3g})" for r in ratios)
                body.append([CASES[case], quantity, way, *texts])
    return ["case", "quantity", "way", "all at once", "in chunks", "every output"], body


def draw_scaling(scaling: dict) -> Figure:
    """Time and memory against the number of directions, and of samples.

    Args:
        scaling: `"directions"` and `"samples"`, each a list of `{count, time, memory}`.
    """
    with style.style():
        figure = Figure(figsize=(8.2, 2.8), layout="constrained")
        for ax, (name, points) in zip(figure.subplots(1, 2), scaling.items(), strict=True):
            counts = [p["count"] for p in points]
            ax.plot(counts, [p["time"] for p in points], "o-", color=style.BLUE, label="time")
            ax.plot(counts, [p["memory"] for p in points], "s--", color=style.ORANGE, label="peak memory")
            first = points[0]
            ax.plot(counts, [first["time"] * c / first["count"] for c in counts], ":", color=style.INK, label="linear")
            ax.set(xscale="log", yscale="log", xlabel=name, ylabel="forward passes of the smallest batch")
            ax.set_xticks(counts, [str(c) for c in counts])
            ax.minorticks_off()
            ax.legend()
    return figure


def make(source: Path = RESULTS / "estimators.json", out: Path = style.OUT) -> list[Path]:
    """Draw both figures from a file of measurements and write them; returns the files."""
    costs = json.loads(source.read_text(encoding="utf-8"))
    return [*style.save(draw(costs), "cost", out), *style.save(draw_scaling(costs["scaling"]), "scaling", out)]
