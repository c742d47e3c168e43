"""The options of `nfm verify` and `nfm report`, and what they write."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer

import nfm_theory as nt

from ..setting.noise import NoiseName
from .checks import BOUND_EPS, Setting, check_bound, layer_names, report_network, verify_expansion
from .device import parse_device
from .errors import BAD_INPUT, HOLDS, INTERRUPTED, NO_READER, REFUTED, UNDECIDED, UsageError, sentence
from .files import replace_file, versions, writable_file, write_json
from .subject import FACTORY, MOST_SAMPLES, Subject, default_loss, load_subject
from .user_code import told_plainly
from .values import parse_budget, parse_dtype, parse_scales

_STATUS = {"holds": HOLDS, "certified": HOLDS, "undecided": UNDECIDED, "refuted": REFUTED}
DEFAULT_ORDER = 2

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nfm_theory {nt.__version__}")
        raise typer.Exit


@app.callback()
def nfm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Check the theory of Noisy Feature Mixup (NFM) on your own network.

    NFM trains on mixtures of two samples, with noise on top. By the theory
    this is plain training with certain regularizers added, as long as mixing
    and noise are small. `verify` checks that on your network; `report` writes
    a page on how large the regularizers are and how far the theory reaches.
    Nothing is trained, and no file of yours is changed.

        nfm verify --model my_model.py:build --data data.npz

    Here my_model.py has a function build() that returns the network, and
    data.npz has the arrays x (inputs) and y (labels).
    """


def _device(name: str) -> torch.device:
    try:
        return parse_device(name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_outputs(outputs: Mapping[str, Path | None], inputs: Sequence[Path | None]) -> None:
    """Refuse files that cannot be written, or that are read as well, before anything is computed."""
    plot = outputs.get("--plot")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot: matplotlib is not installed. Install it with: pip install matplotlib")
    taken = {Path(os.path.realpath(path)): "is read as well" for path in inputs if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        try:
            target = writable_file(path)
        except OSError as error:
            raise UsageError(f"{option}: {sentence(error)}") from error
        if target in taken:
            raise UsageError(f"{option}: expected a file of its own, but {path} {taken[target]}.")
        taken[target] = f"is the file of {option} as well"
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot: expected a file .png, .svg or .pdf, got {plot}.")


def _source(model: str | None) -> Path | None:
    """The file of the factory, if the user named one."""
    place = (model or "").rpartition(":")[0]
    return Path(place) if place.endswith(".py") else None


def _check_combination(bound: bool, order: int, plot: Path | None, radius: str | None, certificate: str | None) -> None:
    """Refuse an option of one check that the other would ignore."""
    given = [("--radius", radius), ("--certificate", certificate)]
    if bound:
        given = [("--order", order if order != DEFAULT_ORDER else None), ("--plot", plot)]
    named = [name for name, value in given if value is not None]
    if named:
        raise UsageError(f"{named[0]}: does not go with --bound." if bound else f"{named[0]}: needs --bound.")


def _save_plot(reports: list, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(reports), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, report in zip(figure.subplots(1, len(reports), squeeze=False)[0], reports, strict=True):
        report.plot(ax)
        ax.set_title(f"{report.layer or 'input'}, {ax.get_title()}")
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _records(subject: Subject, reports: list, device: str, seconds: float) -> dict | list[dict]:
    """One object per report, a list if there are several: the report, and what it is about."""
    facts = {"model": subject.model_name, "data": subject.data_name, "device": device, "versions": versions()}
    records = [{**report.to_dict(), **facts, "seconds": round(seconds, 2)} for report in reports]
    return records[0] if len(records) == 1 else records


def _worst(reports: list) -> int:
    verdicts = {report.verdict for report in reports}
    return _STATUS[next(v for v in ("refuted", "undecided", "holds", "certified") if v in verdicts)]


@contextmanager
def _told() -> Iterator[None]:
    """Say what the user did wrong in a sentence, and end with the status for it."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(NO_READER) from None
    except (UsageError, OSError) as error:
        if place := getattr(error, "place", ""):
            typer.echo(f"nfm: the error comes from your code:\n{place}", err=True)
        typer.echo(f"nfm: {sentence(error)}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def _law(alpha: float, beta: float | None, add_noise: float, mult_noise: float, noise: str) -> nt.Law:
    with told_plainly():
        return nt.Law(alpha, beta, add_noise, mult_noise, cast(NoiseName, noise))


# The options --------------------------------------------------------------------------------------------------------


def _option(words: str, *names: str, least: int | None = None, most: int | None = None) -> Any:
    return typer.Option(*names, help=words, min=least, max=most)


Model = Annotated[str | None, _option(f"The network: {FACTORY}. It returns an nn.Module or (model, x, y). Required.")]
Layers = Annotated[
    list[str] | None,
    _option('Layer to perturb, by its dotted name. Repeat it for several; "" is the input. (default: the input)'),
]
StateDict = Annotated[
    Path | None,
    _option("Weights to load, from a file of torch.save: model.state_dict(), or a checkpoint that has it inside."),
]
Data = Annotated[
    Path | None,
    _option("Data: FILE.npz with arrays x and y, or FILE.pt with tensors x and y. (default: the factory's own)"),
]
NumSamples = Annotated[
    int | None, _option(f"How many samples to use, from the first on. (default: at most {MOST_SAMPLES})")
]
Alpha = Annotated[float, _option("First parameter of the Beta distribution of the mixing weight; 0 for no mixing.")]
Beta = Annotated[float | None, _option("Second parameter of the Beta distribution. (default: alpha)")]
AddNoise = Annotated[
    float, _option("Level of the noise that is added to the features; of normal noise the standard deviation.")
]
MultNoise = Annotated[float, _option("Level of the noise by which the features are multiplied.")]
Noise = Annotated[
    str, _option("Distribution of the noise: normal, uniform, rademacher (signs) or released (as in the papers' code).")
]
Order = Annotated[int, _option("Order of the expansion: the last power of the scale that it has.")]
Loss = Annotated[
    str | None,
    _option(
        "cross_entropy, logistic, square, bce or mse. (default: logistic for one output and integer labels, else "
        "cross_entropy)"
    ),
]
Eps = Annotated[
    str | None,
    _option(
        f"Scales of mixing and noise, separated by commas; training has 1. (default: 0.1 and smaller; with --bound "
        f"{BOUND_EPS})"
    ),
]
Method = Annotated[str, _option("How the NFM loss is computed: auto, exact or monte_carlo.")]
VerifyBudget = Annotated[
    str | None,
    _option(
        "What each layer may take, such as '90 s', '10 min', '300 passes' or a number of evaluations of the network; "
        "with --bound no time. (default: about a minute, or 300 passes of a large network)",
        "--budget",
    ),
]
Dtype = Annotated[str, _option("Precision of the computation: float64 or float32.")]
Device = Annotated[str, _option("Where to compute: cpu or cuda.")]
Seed = Annotated[int, _option("Random seed of sampling and of the attacks.", least=0, most=2**63 - 1)]
Json = Annotated[Path | None, _option("Write the report to this file, as JSON.", "--json")]
Plot = Annotated[
    Path | None,
    _option(
        "Draw what the expansion leaves out, against the scale, into this file (.png, .svg or .pdf). Needs matplotlib."
    ),
]
Bound = Annotated[bool, _option("Check the adversarial bound and each of its assumptions instead.", "--bound")]
Radius = Annotated[
    str | None,
    _option(
        "With --bound, radius of the attack: sharp, paper (as printed there) or mean (also for networks with biases). "
        "(default: sharp)"
    ),
]
Certificate = Annotated[
    str | None,
    _option(
        "With --bound, how the attacked loss is bounded from above: auto, region, enumeration, crown, crown-ibp, "
        "interval or none. (default: auto)"
    ),
]
NetworkArgument = Annotated[str, typer.Argument(metavar="MODEL", help=f"The network: {FACTORY}.")]
DataArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[DATA]", help="FILE.npz or FILE.pt with x and y. (default: the factory's own data)"),
]
ReportLayers = Annotated[
    list[str] | None,
    _option(
        'Layer to report on, by its dotted name. Repeat it for several; "" is the input. (default: the input and up to '
        "three layers behind it)",
        "--layer",
    ),
]
Page = Annotated[Path, _option("Write the page to this file.", "--html")]
ReportBudget = Annotated[
    str | None,
    _option("What each layer may take, such as '90 s', '10 min' or '300 passes'. (default: a few seconds)", "--budget"),
]
BoundScale = Annotated[
    float, _option("Scale of mixing and noise at which the adversarial bound is checked; training has 1.", "--eps")
]
ListLayers = Annotated[bool, _option("List the layers that can be verified, and stop.", "--list-layers")]


@app.command()
def verify(
    model: Model = None,
    layer: Layers = None,
    state_dict: StateDict = None,
    data: Data = None,
    num_samples: NumSamples = None,
    alpha: Alpha = 1.0,
    beta: Beta = None,
    add_noise: AddNoise = 0.4,
    mult_noise: MultNoise = 0.2,
    noise: Noise = "normal",
    order: Order = DEFAULT_ORDER,
    loss: Loss = None,
    eps: Eps = None,
    method: Method = "auto",
    budget: VerifyBudget = None,
    dtype: Dtype = "float64",
    device: Device = "cpu",
    seed: Seed = 0,
    json_path: Json = None,
    plot: Plot = None,
    bound: Bound = False,
    radius: Radius = None,
    certificate: Certificate = None,
    list_layers: ListLayers = False,
) -> None:
    """Check whether the expansion of the NFM loss holds on your network.

    The expansion is the loss of plain training plus the regularizers of the
    theory. It is compared with the loss itself at several scales of mixing and
    noise (--eps), where training has scale 1. What the expansion leaves out
    must fall with the scale as predicted.

        nfm verify --model my_model.py:build --list-layers
        nfm verify --model my_model.py:build --data data.npz --layer layer3

    Refuted means that the loss contradicts the expansion, for example because
    the network's gradients are not those of what it computes. Undecided means
    that the check was too coarse; the report says what would help.

    With --bound, the adversarial bound is checked instead: the NFM loss is
    compared with attacks and certificates.

    Exit status: 0 holds (with --bound: certified), 1 refuted, 2 bad input,
    3 undecided; the worst of several layers and scales. 70 means that the
    command itself failed.
    """
    with _told():
        scales, layers = parse_scales(eps), layer or [""]
        _check_combination(bound, order, plot, radius, certificate)
        precision, place, limit = parse_dtype(dtype), _device(device), parse_budget(budget)
        _check_outputs({"--json": json_path, "--plot": plot}, (data, state_dict, _source(model)))
        subject = load_subject(
            model, state_dict=state_dict, data=data, num_samples=num_samples, dtype=precision, device=place
        )
        for note in subject.notes:
            typer.echo(f"nfm: note: {note}.", err=True)
        if list_layers:
            for name in layer_names(subject):
                typer.echo(name or '"" (the input)')
            return
        start = time.perf_counter()
        law = _law(alpha, beta, add_noise, mult_noise, noise)
        setting = Setting(law, default_loss(subject) if loss is None else loss, method, limit, seed)
        reports: list
        if bound:
            kinds = {"radius": radius or "sharp", "certificate": certificate or "auto"}
            reports = check_bound(subject, layers, setting, eps=scales, **kinds)
        else:
            reports = verify_expansion(subject, layers, setting, order=order, eps=scales)
        typer.echo("\n\n".join(map(str, reports)))
        if json_path is not None:
            write_json(json_path, _records(subject, reports, device, time.perf_counter() - start))
        if plot is not None:
            _save_plot(reports, plot)
    raise typer.Exit(_worst(reports))


@app.command()
def report(
    model: NetworkArgument,
    data: DataArgument = None,
    layer: ReportLayers = None,
    html: Page = Path("report.html"),
    json_path: Json = None,
    state_dict: StateDict = None,
    num_samples: NumSamples = None,
    alpha: Alpha = 1.0,
    beta: Beta = None,
    add_noise: AddNoise = 0.4,
    mult_noise: MultNoise = 0.2,
    noise: Noise = "normal",
    loss: Loss = None,
    eps: BoundScale = BOUND_EPS,
    budget: ReportBudget = None,
    dtype: Dtype = "float64",
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Write a page on your network: what NFM adds at each layer, how far the theory reaches, margins and bounds.

    The page has plots and a paragraph on each result. It needs no other file,
    so that you can send it to others.

        nfm report my_model.py:build data.npz --layer layer3 --budget "2 min"

    Ctrl-C ends the work early; the page then has what is known so far.

    Exit status: 0 if the page is there, 2 for bad input, 130 if it was stopped
    (the page is there as well), 70 if the command itself failed.
    """
    with _told():
        precision, place, limit = parse_dtype(dtype), _device(device), parse_budget(budget)
        _check_outputs({"--html": html, "--json": json_path}, (data, state_dict, _source(model)))
        subject = load_subject(
            model, state_dict=state_dict, data=data, num_samples=num_samples, dtype=precision, device=place
        )
        for note in subject.notes:
            typer.echo(f"nfm: note: {note}.", err=True)
        start, law = time.perf_counter(), _law(alpha, beta, add_noise, mult_noise, noise)
        setting = Setting(law, default_loss(subject) if loss is None else loss, "auto", limit, seed)
        found = report_network(subject, layer or [], setting, eps=eps)
        with replace_file(html) as temporary:
            temporary.write_text(found.to_html(), encoding="utf-8")
        if json_path is not None:
            write_json(json_path, _records(subject, [found], device, time.perf_counter() - start))
        typer.echo(f"{found}\n\nThe page is in {html}.")
    raise typer.Exit(INTERRUPTED if found.interrupted else HOLDS)
