"""What the records of the study `validity` say, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

MODEL_TITLES = {
    "mlp": "MLP, tanh",
    "small_cnn": "CNN, GELU",
    "digits_resnet": "ResNet, digits",
    "preactresnet18": "ResNet-18, CIFAR-10",
}
ORDERS = (1, 2, 3, 4)
#: Networks with ReLU. For smooth networks the linearized head is not of interest.
KINKED = ("digits_resnet", "preactresnet18")
#: The order of the expansion in the theorem.
THEOREM = 2
#: Facts that tell apart two records of different training.
_PLACE = ("data", "model", "layer", "law")


def chosen(records: Iterable[dict], **facts) -> list[dict]:
    """The records that have these facts, such as `law="released"`."""
    return [r for r in records if all(r[name] == value for name, value in facts.items())]


def error(record: dict, order: int | str) -> float:
    """Relative error at ε = 1 of an order, or of the `"linearised"` head."""
    curve = record["curve"]
    return curve["linearised_error"][-1] if order == "linearised" else curve["relative_error"][str(order)][-1]


def radius(record: dict, order: int = THEOREM) -> float:
    """The ε up to which an order is within 10 %; infinite if it is so up to ε = 1."""
    value = record["curve"]["radius"][str(order)]
    return math.inf if value is None else value


def verdict(record: dict, eps: float = 1.0) -> str:
    """The verdict on the bound at an ε; `"not refuted"` if only an attack could be tried."""
    side = next(s for s in record["bound"]["sides"] if s["eps"] == eps)
    if side["verdict"] == "undecided":
        return "not refuted" if side["right_upper"] is None else "undecided"
    return side["verdict"]


def reach(records: Sequence[dict], first: str, second: str) -> list[float]:
    """How many times as far the theory reaches on networks trained with `first` as on those trained with `second`.

    Args:
        records: records of the study `validity`.
        first: a training.
        second: another one; networks, layers and laws that both have are compared.
    """
    known = {(*(r[fact] for fact in _PLACE), r["training"]): radius(r) for r in records}
    pairs = [(value, known.get((*key[:-1], second))) for key, value in known.items() if key[-1] == first]
    return [a / b for a, b in pairs if b is not None and math.isfinite(a) and math.isfinite(b)]


def findings(records: Sequence[dict], made: Sequence[dict]) -> dict[str, str]:
    """The numbers of the page, as they stand in its text.

    Args:
        records: records of the study `validity`.
        made: records of the study `bounds`, whose networks are made for the bound.

    Returns:
        Numbers of networks, layers and cases (layers with a law); of order p at ε = 1 the median error in percent
        (`error_1` to `error_4`), of order 2 also the smallest and the largest, and the number of cases within 10 %
        (`near`); the smallest and largest radius; the median error of the linearized ReLU networks; how often and how
        many times further the theory reaches after NFM; the verdicts on the bound at ε = 1; and the largest deviation
        of a coefficient in standard errors.
    """

    def percent(value: float) -> str:
        return f"{100 * value:.0f}"

    second, radii = [error(r, THEOREM) for r in records], [radius(r) for r in records]
    further, verdicts = reach(records, "nfm", "baseline"), [verdict(r) for r in records]
    ends = [r["bound"][-1] for r in made]
    return {
        "networks": str(len({(r["data"], r["model"], r["training"]) for r in records})),
        "layers": str(len({(r["data"], r["model"], r["training"], r["layer"]) for r in records})),
        "cases": str(len(records)),
        **{f"error_{p}": percent(median(error(r, p) for r in records)) for p in ORDERS},
        "error_least": percent(min(second)),
        "error_most": percent(max(second)),
        "near": str(sum(value <= 0.1 for value in second)),
        "radius_least": f"{min(radii):.2f}",
        "radius_most": f"{max(radii):.2f}",
        "kinks": percent(median(error(r, "linearised") for r in records if r["model"] in KINKED)),
        "further": f"{sum(ratio > 1 for ratio in further)} of {len(further)}",
        "times": f"{median(further):.1f}" if further else "–",
        "assumed": str(sum(not r["bound"]["failed"] for r in records)),
        "certified": str(verdicts.count("certified")),
        "refuted": str(verdicts.count("refuted")),
        "open": str(len(verdicts) - verdicts.count("certified") - verdicts.count("refuted")),
        "refuted_below": str(sum(any(s["verdict"] == "refuted" for s in r["bound"]["sides"]) for r in records)),
        "made": str(len(ends)),
        "made_assumed": str(sum(not side["failed"] for side in ends)),
        "made_certified": str(sum(side["verdict"] == "certified" for side in ends)),
        "witness": f"{max(abs(miss) for r in records for miss in r['witness']['miss']):.1f}",
    }
