"""How often a verdict is right: `python -m benchmarks.verdicts [--networks N] [--json PATH]`.

Random small smooth networks are verified with right terms, and with terms that are wrong in one of these ways: a named
term off by 1 % or 0.3 %, two sources swapped, two errors that cancel in the sum. Networks whose derivatives are cut and
networks that compute a part in float32 are verified with right terms. What counts: a wrong term is refuted, or the
report says that an error of this size is not resolved; a right one is not refuted.

The evidence of a network does not depend on the terms, so it is gathered once, and all terms are judged by it. The file
is written after every network; a run that was interrupted goes on where it stopped.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import nfm_theory as nt
from benchmarks.estimators.measure import machine, num_threads, versions
from nfm_theory.verification.verify import prepared

ACTIVATIONS = {"tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "softplus": nn.Softplus}
EPS = (0.1, 0.05, 0.025)
DTYPES = {"float64": torch.float64, "float32": torch.float32}
SECOND = ("R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult")
SIZES = (1.01, 1.003)


def network(seed: int, cut: str = "none") -> nn.Module:
    """A random network of one or two hidden layers; `cut` says what is done to its middle."""
    generator = torch.Generator().manual_seed(seed)
    width = int(torch.randint(3, 7, (), generator=generator))
    activation = list(ACTIVATIONS.values())[seed % len(ACTIVATIONS)]
    layers: list[nn.Module] = [nn.Linear(3, width), activation()]
    if seed % 2:
        layers += [nn.Linear(width, width), activation()]
    model = nn.Sequential(*layers, Middle(cut), nn.Linear(width, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False).eval()


class Middle(nn.Module):
    """What is done to hidden features: nothing, a derivative that is not that of the value, or a part in float32."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, h: Tensor) -> Tensor:
        """Map the hidden features to new ones."""
        if self.kind == "detach":
            return torch.cat([h[:, :1], h[:, 1:].detach()], 1)
        if self.kind == "straight-through":
            part = h[:, 1:]
            return torch.cat([h[:, :1], part + ((4 * part).round() / 4 - part).detach()], 1)
        if self.kind == "constant norm":
            return h / (0.1 + h.norm(dim=1, keepdim=True).detach())
        if self.kind == "float32 norm":
            z = h.float()
            return (z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)).to(h.dtype)
        if self.kind == "float32 softmax":
            return h.softmax(-1, dtype=torch.float32).to(h.dtype)
        return h


def problem(seed: int, dtype: torch.dtype, cut: str = "none") -> nt.Problem:
    """A network with four random samples, mixing and both noises."""
    generator = torch.Generator().manual_seed(seed + 10_000)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(3, (4,), generator=generator)
    return nt.Problem(network(seed, cut).to(dtype), x, y, law=nt.Law(add_noise=0.3, mult_noise=0.2))


def wrong_terms(terms: nt.TaylorTerms, seed: int) -> dict[str, tuple[nt.TaylorTerms, dict[str, float]]]:
    """By kind of error, wrong terms and the sizes of the errors by term; the term changes with the seed."""
    name, size = SECOND[seed % len(SECOND)], SIZES[seed // len(SECOND) % 2]
    shift = 0.1 * terms.R2
    kinds = {
        f"{100 * (size - 1):.1g} % of a term": {name: terms[name] * size},
        "sources swapped": {"R2_add": terms.R2_mult, "R2_mult": terms.R2_add},
        "errors that cancel": {"R2": terms.R2 + shift, "R3": terms.R3 - shift},
    }
    return {
        kind: (replace(terms, **changed), {k: abs(float(v - terms[k])) for k, v in changed.items()})
        for kind, changed in kinds.items()
    }


def outcome(report: nt.ExpansionReport, errors: dict[str, float]) -> str:
    """`"refuted"`, `"not resolved"` if the report states that it would not have seen errors so small, or `"missed"`."""
    if report.verdict == "refuted":
        return "refuted"
    hidden = all(error <= report.power[name]["error"] for name, error in errors.items())
    return "not resolved" if hidden or report.verdict == "undecided" else "missed"


@torch.no_grad()
def judged(one: nt.Problem, seed: int) -> dict[str, str]:
    """By kind of terms, the verdict on the right ones and the outcomes of the wrong ones, from one verification."""
    run, scales = prepared(one, 2, EPS, None, None, "auto", "auto", given=False)
    with nt.options(progress=False, check_derivatives=False), run.meter:
        run.check_coefficients(None)
        right = run.check_remainders(scales, halve=False)
        found = {"right terms": right.verdict}
        for kind, (terms, errors) in wrong_terms(right.terms, seed).items():
            found[kind] = outcome(run.judged(terms, scales), errors)
    return found


def examined(seed: int, networks: int, cut: int, mixed: int) -> Iterator[tuple[str, str]]:
    """Titles with outcomes of one seed, for all that is asked of it."""
    for name, dtype in DTYPES.items():
        if seed < networks:
            for kind, word in judged(problem(seed, dtype), seed).items():
                yield f"{name}, {kind}", word
        if seed < cut:
            kind = ("detach", "straight-through", "constant norm")[seed % 3]
            yield f"{name}, cut derivatives", nt.verify(problem(seed, dtype, kind), eps=EPS).verdict
    if seed < mixed:
        kind = ("float32 norm", "float32 softmax")[seed % 2]
        yield "a part in float32", nt.verify(problem(seed, torch.float64, kind), eps=EPS).verdict


def main() -> None:
    """Print the counts; write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=400)
    parser.add_argument("--cut", type=int, default=60)
    parser.add_argument("--mixed", type=int, default=12)
    parser.add_argument("--json", type=Path, help="also write the counts to this file, and go on from it")
    args = parser.parse_args()
    settings = {"networks": args.networks, "cut": args.cut, "mixed": args.mixed, "eps": list(EPS)}
    counts: dict[str, Counter] = {}
    odd: dict[str, list[int]] = {}
    done = 0
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if before.get("settings") == settings:
            counts, odd, done = {k: Counter(v) for k, v in before["counts"].items()}, before["odd"], before["seeds"]
    with num_threads(1), nt.options(progress=False):
        for seed in range(done, max(args.networks, args.cut, args.mixed)):
            for title, word in examined(seed, args.networks, args.cut, args.mixed):
                counts.setdefault(title, Counter())[word] += 1
                if word == "missed" or ("right" in title and word != "holds"):
                    odd.setdefault(f"{title}: {word}", []).append(seed)
                    print(title, seed, word, flush=True)
            if args.json:
                record = {
                    "counts": counts, "odd": odd, "seeds": seed + 1, "settings": settings, "machine": machine(),
                    "versions": versions("nfm_theory"),
                }  # fmt: skip
                part = args.json.with_suffix(".part")
                part.write_text(json.dumps(record, indent=1), encoding="utf-8")
                part.replace(args.json)
    for title, words in counts.items():
        print(f"{title:40}" + ", ".join(f"{number} {word}" for word, number in words.items()))


if __name__ == "__main__":
    main()
