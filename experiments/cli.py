"""The command `nfm`.

Exit status: 0 holds or certified, 1 refuted, 2 bad input, 3 undecided; the worst of several layers and scales; 70 if
the command itself fails.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

import torch
import typer

import nfm_theory as nt
from nfm_theory.adversarial import adversarial_bound

from .commands import app as experiments_app
from .models.small import MODELS
from .record.files import replace_file, versions, write_json
from .sources import MOST_SAMPLES, Subject, UsageError, load_subject

HOLDS, REFUTED, BAD_INPUT, UNDECIDED, CRASHED = 0, 1, 2, 3, 70
_STATUS = {"holds": HOLDS, "certified": HOLDS, "undecided": UNDECIDED, "refuted": REFUTED}
DEFAULT_ORDER, BOUND_EPS = 2, 0.05
_DTYPES = {"float64": torch.float64, "float32": torch.float32}

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nfm_theory {nt.__version__}")
        raise typer.Exit


@app.callback()
def nfm(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """The theory of Noisy Feature Mixup on your own network."""


def _scales(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(v) and v > 0 for v in values):
        raise UsageError(f"--eps: expected positive numbers separated by commas, such as 0.1,0.05,0.025, got {text!r}.")
    return values


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device: expected cpu or cuda, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: expected a CUDA device for 'cuda', found none; use --device cpu.")
    return device


def _check_outputs(json_path: Path | None, plot: Path | None) -> None:
    """Before anything is computed, not after it."""
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot: matplotlib is not installed; pip install matplotlib, or leave --plot out.")
    for option, path in (("--json", json_path), ("--plot", plot)):
        if path is not None and path.is_dir():
            raise UsageError(f"{option}: expected a file, got the directory {path}.")
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{option}: {path.parent} cannot be made ({error.strerror}).") from error
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot: expected a file .png, .svg or .pdf, got {plot}.")


def _save_plot(reports: list, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(reports), figsize=(5.0 * len(reports), 3.8), layout="constrained", squeeze=False)
    for ax, report in zip(axes[0], reports, strict=True):
        report.plot(ax)
        ax.set_title(f"{report.layer or 'input'}, {ax.get_title()}")
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def _verify(subject: Subject, layers: list[str], eps, order: int, method: str, seed: int, **options) -> list:
    options["loss"] = options["loss"] or subject.loss or "cross_entropy"
    options["samples"] = options.pop("monte_carlo_rows")
    reports = []
    for layer in layers:
        try:
            reports.append(
                nt.verify_expansion(
                    subject.model,
                    subject.x,
                    subject.y,
                    layer=layer,
                    eps=eps,
                    order=order,
                    method=method,
                    seed=seed,
                    **options,
                )
            )
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise UsageError(str(error)) from error
    return reports


def _bound(subject: Subject, layers: list[str], eps, method: str, seed: int, **options) -> list:
    """A report for every layer and scale."""
    options["loss"] = options["loss"] or subject.loss or "cross_entropy"
    options["samples"] = options.pop("monte_carlo_rows")
    try:
        return [
            adversarial_bound(
                subject.model, subject.x, subject.y, layer=layer, eps=scale, method=method, seed=seed, **options
            )
            for layer in layers
            for scale in eps or [BOUND_EPS]
        ]
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise UsageError(str(error)) from error


def _check_bound_options(bound: bool, order: int, plot: Path | None, radius: str | None, certificate: str | None):
    """Options of one check are not silently dropped by the other."""
    given = [("--radius", radius), ("--certificate", certificate)]
    if bound:
        given = [("--order", order if order != DEFAULT_ORDER else None), ("--plot", plot)]
    named = [name for name, value in given if value is not None]
    if named:
        raise UsageError(f"{named[0]}: does not go with --bound." if bound else f"{named[0]}: needs --bound.")


def _list_layers(subject: Subject) -> None:
    try:
        names = nt.layer_names(subject.model, subject.x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    for name in names:
        typer.echo(name or '"" (the input)')


def _records(subject: Subject, reports: list, device: str, seconds: float):
    """One object per report: the report and what it was made of; a list if there are several."""
    facts = {"model": subject.model_name, "data": subject.data_name, "device": device, "versions": versions()}
    records = [{**report.to_dict(), **facts, "seconds": round(seconds, 2)} for report in reports]
    return records[0] if len(records) == 1 else records


@app.command()
def verify(
    model: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(MODELS)} (trained on digits), or a factory that returns an nn.Module or (model, x, y): "
            "path/to/file.py:factory or package.module:factory."
        ),
    ] = "mlp",
    layer: Annotated[
        list[str] | None, typer.Option(help='Layer by dotted name; repeat for several. "" is input.')
    ] = None,
    state_dict: Annotated[Path | None, typer.Option(help="Weights, as torch.save(model.state_dict(), FILE).")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, digits-vectors, or FILE.npz / FILE.pt with x and y. (default: the factory's, or digits)"
        ),
    ] = None,
    classes: Annotated[int, typer.Option(help="K of the digits: 10, or 2 (3 against 8, one logit).")] = 10,
    num_samples: Annotated[
        int | None,
        typer.Option(help=f"First samples of the data. [default: 10 of digits, at most {MOST_SAMPLES} of your data]"),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Beta parameter of the mixing weight; 0 for no mixing.")] = 1.0,
    beta: Annotated[float | None, typer.Option(help="Second Beta parameter. (default: alpha)")] = None,
    add_noise: Annotated[float, typer.Option(help="Level of additive noise.")] = 0.4,
    mult_noise: Annotated[float, typer.Option(help="Level of multiplicative noise.")] = 0.2,
    noise: Annotated[str, typer.Option(help="normal, uniform, rademacher or released.")] = "normal",
    order: Annotated[int, typer.Option(help="Order of the expansion.")] = DEFAULT_ORDER,
    loss: Annotated[
        str | None,
        typer.Option(help="cross_entropy, logistic or square. (default: the digits' own, or cross_entropy)"),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(help=f"Scales, separated by commas. (default: 0.1 down; with --bound {BOUND_EPS})"),
    ] = None,
    method: Annotated[str, typer.Option(help="auto, exact or monte_carlo.")] = "auto",
    monte_carlo_rows: Annotated[int, typer.Option(help="Rows of Monte Carlo.")] = 200_000,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of everything random, training of the built-in models included.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw remainder against eps here (.png, .svg, .pdf).")] = None,
    bound: Annotated[
        bool, typer.Option("--bound", help="Check the adversarial bound instead, with each of its assumptions.")
    ] = False,
    radius: Annotated[
        str | None, typer.Option(help="With --bound: sharp, paper, or mean (needs no homogeneity). (default: sharp)")
    ] = None,
    certificate: Annotated[
        str | None,
        typer.Option(
            help="With --bound, upper bounds by: auto, region, enumeration, crown, crown-ibp, interval, none. "
            "(default: auto)"
        ),
    ] = None,
    list_layers: Annotated[bool, typer.Option("--list-layers", help="Only list the layers.")] = False,
) -> None:
    """Verify the expansion of the NFM loss on a network: does the remainder fall as predicted?

    With --bound, verify the adversarial bound at each scale: the loss of NFM against attacks and certificates.

    Exit status: 0 holds (--bound: certified), 1 refuted, 2 bad input, 3 undecided; the worst of several layers.
    """
    try:
        scales = _scales(eps)
        _check_bound_options(bound, order, plot, radius, certificate)
        if dtype not in _DTYPES:
            raise UsageError(f"--dtype: expected one of {list(_DTYPES)}, got {dtype!r}.")
        _check_outputs(json_path, plot)
        subject = load_subject(
            model, state_dict=state_dict, data=data, classes=classes, num_samples=num_samples, seed=seed,
            dtype=_DTYPES[dtype], device=_device(device),
        )  # fmt: skip
        if list_layers:
            return _list_layers(subject)
        start = time.perf_counter()
        setting = {
            "alpha": alpha, "beta": beta, "add_noise": add_noise, "mult_noise": mult_noise, "noise": noise,
            "loss": loss, "monte_carlo_rows": monte_carlo_rows,
        }  # fmt: skip
        if bound:
            kinds = {"radius": radius or "sharp", "certificate": certificate or "auto"}
            reports = _bound(subject, layer or [""], scales, method, seed, **kinds, **setting)
        else:
            reports = _verify(subject, layer or [""], scales, order, method, seed, **setting)
        typer.echo("\n\n".join(map(str, reports)))
        if json_path is not None:
            write_json(json_path, _records(subject, reports, device, time.perf_counter() - start))
        if plot is not None:
            _save_plot(reports, plot)
    except UsageError as error:
        typer.echo(f"nfm: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except OSError as error:
        typer.echo(f"nfm: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    verdicts = {report.verdict for report in reports}
    worst = next(v for v in ("refuted", "undecided", "holds", "certified") if v in verdicts)
    raise typer.Exit(_STATUS[worst])


app.registered_commands += experiments_app.registered_commands
app.registered_groups += experiments_app.registered_groups


def main() -> None:
    """Entry point; a crash must not read as "refuted", which is what Python's own status 1 would say."""
    try:
        app()
    except Exception:
        traceback.print_exc()
        sys.exit(CRASHED)


if __name__ == "__main__":
    main()
