"""What the records of the study `validity` say, in numbers and in words. No number on the page is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from .study import TITLES

MODEL_TITLES = {
    "mlp": "MLP, tanh",
    "small_cnn": "CNN, GELU",
    "digits_resnet": "ResNet, digits",
    "preactresnet18": "ResNet-18, CIFAR-10",
}
LAW_TITLES = {"released": "mixing, released noise", "normal": "mixing, normal noise", "mixing": "mixing only"}
ORDERS = (1, 2, 3, 4)
#: Networks with ReLU. For smooth networks the linearized head is not of interest.
KINKED = ("digits_resnet", "preactresnet18")
#: The order of the expansion in the theorem.
THEOREM = 2


def chosen(records: Iterable[dict], **facts) -> list[dict]:
    """The records that have these facts.

    Args:
        records: records of the study `validity`.
        **facts: fields with their values, such as `law="released"`.
    """
    return [r for r in records if all(r[name] == value for name, value in facts.items())]


def error(record: dict, order: int | str) -> float:
    """Relative error at ε = 1 of an order, or of the `"linearised"` head."""
    curve = record["curve"]
    return curve["linearised_error"][-1] if order == "linearised" else curve["relative_error"][str(order)][-1]


def within_noise(record: dict, order: int | str) -> bool:
    """True if the error at ε = 1 is below its standard error."""
    return error(record, order) < record["curve"]["relative_stderr"][str(order)][-1]


def radius(record: dict, order: int = THEOREM) -> float:
    """The ε at which an order is 10 % off; infinite if it is not up to ε = 1."""
    value = record["curve"]["radius"][str(order)]
    return math.inf if value is None else value


def percent(value: float) -> str:
    """A relative error as text, with no more digits than needed.

    Example:
        >>> percent(0.0312), percent(0.653), percent(41.0)
        ('3.1 %', '65 %', '4100 %')
    """
    return f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"


def error_text(record: dict, order: int | str) -> str:
    """The relative error at ε = 1 with its standard error, or that it is within noise."""
    stderr = record["curve"]["relative_stderr"][str(order)][-1]
    if within_noise(record, order):
        return f"within noise, {percent(stderr)}"
    return f"{percent(error(record, order)).removesuffix(' %')} ± {percent(stderr)}"


def radius_text(record: dict, order: int = THEOREM) -> str:
    """The ε at which an order is 10 % off, with its range of two standard errors."""
    low, high = (math.inf if v is None else v for v in record["curve"]["radius_range"][str(order)])
    value = radius(record, order)

    def text(v: float) -> str:
        return f"{v:.2f}" if math.isfinite(v) else "> 1"

    if text(low) == text(value) == text(high):
        return text(value)
    return f"{text(value)} ({text(low)} to {text(high)})"


def verdict(record: dict, eps: float = 1.0) -> str:
    """The verdict on the bound at an ε; `"not refuted"` if only an attack could be tried."""
    side = next(s for s in record["bound"]["sides"] if s["eps"] == eps)
    if side["verdict"] == "undecided":
        return "not refuted" if side["right_upper"] is None else "undecided"
    return side["verdict"]


def holds_up_to(record: dict) -> str:
    """The largest ε at which the bound is certified or open, and the ε at which it is refuted."""
    sides = record["bound"]["sides"]
    certified = [s["eps"] for s in sides if s["verdict"] == "certified"]
    refuted = [s["eps"] for s in sides if s["verdict"] == "refuted"]
    open_ = [s["eps"] for s in sides if s["verdict"] == "undecided"]
    parts = [f"certified at {max(certified):g}"] if certified else []
    if open_ and (not certified or max(open_) > max(certified)):
        parts.append(f"open at {max(open_):g}")
    if refuted:
        parts.append("refuted at " + ", ".join(f"{e:g}" for e in refuted))
    return "; ".join(parts)


def attacked_share(record: dict) -> float:
    """The right side of the bound under attack, as a share of the left side at ε = 1."""
    side = record["bound"]["sides"][-1]
    return side["right_lower"] / side["nfm_loss"]


def name(record: dict) -> list[str]:
    """Network, training, layer and law in words."""
    training = TITLES.get(record["training"], record["training"])
    return [MODEL_TITLES[record["model"]], training, record["layer"] or "input", LAW_TITLES[record["law"]]]


def table_rows(records: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table, one row for each network, layer and law."""
    header = ["network", "trained with", "layer", "law", *(f"order {p}" for p in ORDERS), "all orders", "ε₁₀"]
    header += ["bound, ε = 1", "bound, largest ε"]
    rows = []
    for r in records:
        linear = error_text(r, "linearised") if r["model"] in KINKED else "–"
        rows.append([*name(r), *(error_text(r, p) for p in ORDERS), linear, radius_text(r), verdict(r), holds_up_to(r)])
    return header, rows


def span(values: Sequence[float], form=percent) -> str:
    """Median, smallest and largest number, as text.

    Args:
        values: the numbers; they may be infinite.
        form: makes the text of one number.
    """
    texts = [form(v) for v in (median(values), min(values), max(values))]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def number(value: float) -> str:
    """An ε as text."""
    return f"{value:.2f}" if math.isfinite(value) else "> 1"


def share(count: int, total: int) -> str:
    """How many of how many, such as `all 3`, `none` or `2 of 3`."""
    return "none" if count == 0 else f"all {total}" if count == total else f"{count} of {total}"


def _paired(records: Sequence[dict], facts: Sequence[str], key: str, first: str, second: str) -> list[float]:
    """Ratios between the ε of order 2 of records that differ in one fact."""
    known = {tuple(r[f] for f in (*facts, key)): radius(r) for r in records}
    pairs = [(value, known.get((*k[:-1], second))) for k, value in known.items() if k[-1] == first]
    return [a / b for a, b in pairs if b is not None and math.isfinite(a) and math.isfinite(b)]


def _times(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"


def _direction(ratios: Sequence[float]) -> str:
    """Does a radius grow everywhere, in some pairs, or nowhere?"""
    if min(ratios) > 1 or max(ratios) < 1:
        return "always further" if min(ratios) > 1 else "never further"
    return f"further in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} pairs"


def _order_words(records: Sequence[dict]) -> list[str]:
    """What the order of the theorem and the other orders do."""
    total = len(records)
    good = {p: sum(error(r, p) <= 0.1 for r in records) for p in ORDERS}
    unseen = sum(within_noise(r, p) for r in records for p in ORDERS)
    where = "nowhere" if good[THEOREM] == 0 else f"in {share(good[THEOREM], total)} cases"
    others = ", ".join(span([radius(r, p) for r in records], number) for p in ORDERS if p != THEOREM)
    falls = ", ".join(f"{percent(median(error(r, p) for r in records))} at order {p}" for p in ORDERS)
    better = sum(error(r, 4) < error(r, THEOREM) for r in records)
    return [
        f"**At the scale of training, ε = 1, the second-order expansion is within 10 % of the loss {where}.** Its "
        f"relative error is {span([error(r, THEOREM) for r in records])}: median over {total} networks, layers and "
        "laws, smallest and largest.",
        f"**It is within 10 % up to ε₁₀ = {span([radius(r) for r in records], number)}.** For orders 1, 3 and 4 that "
        f"is {others}.",
        f"**Order 4 is closer than order 2** at ε = 1 in {share(better, total)} cases, and within 10 % in "
        f"{share(good[4], total)}; order 3 is in {share(good[3], total)}. The median error is {falls}. In "
        f"{share(unseen, len(ORDERS) * total)} comparisons the difference is within noise.",
    ]


def expansion_words(records: Sequence[dict]) -> list[str]:
    """How close the expansion is at ε = 1, as a list of points.

    Args:
        records: records of the study `validity`; points without records are left out.
    """
    points = _order_words(records)
    kinked = [r for r in records if r["model"] in KINKED]
    if kinked:
        points.append(
            "**Of a ReLU network the expansions of all orders describe the linearised network**, up to its kinks. The "
            f"loss of that is off by {span([error(r, 'linearised') for r in kinked])} at ε = 1: the part that no "
            "order reaches."
        )
    for first, second in (("nfm", "baseline"), ("taylor_nfm", "nfm")):
        ratios = _paired(records, ("data", "model", "layer", "law"), "training", first, second)
        if ratios:
            points.append(
                f"**Trained with {TITLES[first]} the theory reaches {_direction(ratios)} than with {TITLES[second]}:** "
                "ε₁₀ of the same network at the same layer and law is "
                f"{_times(ratios)} as large."
            )
    laws = {
        law: _paired(records, ("data", "model", "training", "layer"), "law", law, "mixing")
        for law in ("released", "normal")
    }
    if all(laws.values()):
        points.append(
            f"**The law of the noise:** with the released noise ε₁₀ is {_times(laws['released'])} that of mixing "
            f"alone, with normal noise of the same levels {_times(laws['normal'])}."
        )
    return points


def bound_words(records: Sequence[dict], others: Sequence[dict]) -> list[str]:
    """What the adversarial bound says at ε = 1, as a list of points.

    Args:
        records: records of the study `validity`.
        others: records of the study `bounds`, whose networks are made for the bound.
    """
    total = len(records)
    verdicts = [verdict(r) for r in records]
    count = {word: share(verdicts.count(word), total) for word in ("certified", "refuted", "undecided", "not refuted")}
    failed = [assumption for r in records for assumption in r["bound"]["failed"]]
    fails = ", ".join(
        f"{word} ({share(failed.count(word), total)})" for word in sorted(set(failed), key=failed.count, reverse=True)
    )
    applies = share(sum(not r["bound"]["failed"] for r in records), total)
    earlier = [r for r in records if any(s["verdict"] == "refuted" for s in r["bound"]["sides"])]
    points = [
        f"**The adversarial bound, as a theorem, is about {applies} of these cases.** What they fail: "
        f"{fails or 'nothing'}.",
        f"**As an inequality at ε = 1** it is certified in {count['certified']} cases, refuted in {count['refuted']}. "
        f"Between attack and certificate {count['undecided']} are open, and {count['not refuted']} have no certificate "
        "(residual networks): there an attack does not refute it. The attack brings the right side to "
        f"{span([attacked_share(r) for r in records])} of the left side. At a smaller ε it is refuted in "
        f"{share(len(earlier), total)}.",
    ]
    last = [r["bound"][-1] for r in others]
    ends = [side["verdict"] for side in last]
    if last:
        whole = share(sum(not side["failed"] for side in last), len(last))
        points.append(
            f"**Of the {len(last)} networks made for it** ({{doc}}`bound`), {whole} meet every assumption. At ε = 1 "
            f"it is certified for {share(ends.count('certified'), len(ends))}, refuted for "
            f"{share(ends.count('refuted'), len(ends))}, undecided for {share(ends.count('undecided'), len(ends))}."
        )
    return points


def conclusion(records: Sequence[dict]) -> str:
    """The answer in two sentences."""
    near = sum(error(r, THEOREM) <= 0.1 for r in records)
    reach = median(radius(r) for r in records)
    applies = sum(not r["bound"]["failed"] for r in records)
    direction = f"up to about ε = {number(reach)} the second-order regularizers are the loss to within 10 %"
    if near == 0:
        first = f"{direction}; at ε = 1 they are a direction in which training pushes, and not the loss it minimises."
    elif near < len(records):
        first = f"{direction}; at ε = 1 they are so in {near} of {len(records)} cases, elsewhere a direction only."
    else:
        first = f"{direction}, and so they are at ε = 1 in every case."
    refuted = sum(verdict(r) == "refuted" for r in records)
    says = f"is refuted in {refuted or 'none'} of {len(records)} cases"
    why = "in none of them do its assumptions hold" if not applies else f"its assumptions hold in {applies}"
    return f"{first[0].upper()}{first[1:]} The adversarial bound {says} at ε = 1; {why}."


def witness_words(records: Sequence[dict], most: float = 5.0) -> str:
    """How well the coefficients along the paths agree with the exact ones, for each data set.

    Args:
        records: records of the study `validity`.
        most: number of standard errors above which a deviation is too large.
    """
    sentences = []
    for data in dict.fromkeys(r["data"] for r in records):
        some = chosen(records, data=data)
        worst = max(abs(miss) for r in some for miss in r["witness"]["miss"])
        where = f"On {data} ({len(some)} cases, {some[0]['n']} images)"
        text = f"{where} the largest deviation is {worst:.1f} standard errors."
        if worst > most:
            text += (
                " That is too much: a loss with rare large values, seen along few paths, has a larger error than they "
                "show, and so have its relative errors in the table. More paths (`--paths`) cure it."
            )
        sentences.append(text)
    return " ".join(sentences)
