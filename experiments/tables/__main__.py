"""Write the papers' tables with ours beside them, the verdicts on their claims, or the cross-check of their numbers.

python -m experiments.tables [--format md|latex|html] [--table ID]... [--size SIZE]... [--ledger PATH] [--out DIR]
python -m experiments.tables audit [--out DIR]
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from ..record.ledger import LEDGER, Entry, LedgerError, read
from .audit import audit, report_markdown
from .build import build_table, judge_claims
from .registry import TABLES
from .render import CLAIM_FORMATS, TABLE_FORMATS

SUFFIXES = {"md": ".md", "latex": ".tex", "html": ".html"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def read_entries(paths: Iterable[Path]) -> list[Entry]:
    """Our results from several ledgers.

    Args:
        paths: ledger files.

    Raises:
        LedgerError: if a line is damaged.
    """
    return [entry for path in paths for entry in read(path)]


def write(text: str, name: str, out: Path | None) -> None:
    """Print, or write to a file of a folder."""
    if out is None:
        typer.echo(text)
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(text, encoding="utf-8")


@app.callback(invoke_without_command=True)
def tables(
    context: typer.Context,
    form: Annotated[str, typer.Option("--format", help="md, latex or html")] = "md",
    table: Annotated[list[str] | None, typer.Option(help="id of a table; several are possible, default all")] = None,
    size: Annotated[list[str] | None, typer.Option(help="size of our recipes; several are possible")] = None,
    ledger: Annotated[list[Path] | None, typer.Option(help="our results; default the tracked ledger, if any")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the files; default: print")] = None,
) -> None:
    """Write tables of both papers, ours beside them, and the verdicts on their claims."""
    if context.invoked_subcommand is not None:
        return
    if form not in TABLE_FORMATS:
        raise typer.BadParameter(f"expected one of {', '.join(TABLE_FORMATS)}, got {form!r}.", param_hint="--format")
    wanted = table or list(TABLES)
    for name in wanted:
        if name not in TABLES:
            raise typer.BadParameter(f"expected one of {', '.join(TABLES)}; got {name!r}.", param_hint="--table")
    try:
        entries = read_entries(ledger or ([LEDGER] if LEDGER.exists() else []))
    except (LedgerError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--ledger") from None
    for name in wanted:
        write(TABLE_FORMATS[form](build_table(name, entries, size or None)), name + SUFFIXES[form], out)
    judgements = [j for j in judge_claims(entries, size or None) if j.claim.table in wanted]
    write(CLAIM_FORMATS[form](judgements), "claims" + SUFFIXES[form], out)


@app.command("audit")
def audit_command(out: Annotated[Path | None, typer.Option(help="folder for audit.md; default: print")] = None) -> None:
    """Cross-check the printed numbers."""
    write(report_markdown(audit()), "audit.md", out)


if __name__ == "__main__":
    app(prog_name="python -m experiments.tables")
