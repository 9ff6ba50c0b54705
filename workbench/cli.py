"""The command line: `workbench app | doctor | models | verify | pull | run | generate`.

A `WorkbenchError` is shown as its message, with exit code 1; anything else crashes loudly.
"""

import sys
import unicodedata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.core.errors import MissingDependencyError, WorkbenchError

TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
DEFAULT = "smollm2-135m-instruct"
app = typer.Typer(
    name="workbench",
    help="Look into language models, and control them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

Model = Annotated[str, typer.Option("--model", "-m", help="Asset, folder, hub id or .gguf file.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A saved plan: folder or plan.json.")]


def main() -> None:
    """Runs the command line; exits with 1 and a message on a `WorkbenchError`."""
    try:
        app(standalone_mode=True)
    except WorkbenchError as error:
        err.print(Text(plain(f"{type(error).__name__}: {error}"), style="red"))
        sys.exit(1)


@app.command()
def pull(
    name: Annotated[str | None, typer.Argument(help="Asset; all are listed without it.")] = None,
) -> None:
    """Fetch a model or data set by name, check it and keep it; without a name, list them."""
    from workbench.models import assets

    if name is not None:
        folder = assets.pull(name, progress=lambda line: out.print(Text(line, style="dim")))
        out.print(Text(f"{name}: {folder}"))
        return
    out.print(_assets_table())


@app.command()
def run(
    prompt: str,
    model: Model = DEFAULT,
    plan: PlanFile = None,
    top: Annotated[int, typer.Option(min=1, help="How many next tokens to show.")] = 10,
) -> None:
    """Run a prompt and show what the model would say next, with what each intervention did."""
    import workbench as wb

    loaded = wb.load(model)
    trace = wb.run(
        loaded, prompt, plan=() if plan is None else wb.Plan.load(plan), positions="last"
    )
    chances = trace.answer_logits[0].softmax(-1).topk(min(top, loaded.sizes.d_vocab))
    table = Table("token", "p", "logit", title=f"after {trace.batch.tokens.shape[1]} tokens")
    for chance, token in zip(chances.values.tolist(), chances.indices.tolist(), strict=True):
        logit = float(trace.answer_logits[0, token])
        table.add_row(Text(_shown(loaded, token)), f"{chance:.4f}", f"{logit:.3f}")
    out.print(table)
    _receipts(trace.receipts)


@app.command()
def generate(  # noqa: PLR0913 - the options of a generation
    prompt: str,
    model: Model = DEFAULT,
    plan: PlanFile = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n")] = 60,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option()] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int, typer.Option()] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End at this text; may be repeated.")
    ] = None,
) -> None:
    """Continue a prompt, token by token, under a plan if one is given."""
    import workbench as wb

    pieces = wb.generate(
        wb.load(model),
        prompt,
        plan=() if plan is None else wb.Plan.load(plan),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or (),
        stream=True,
    )
    out.print(Text(prompt, style="dim"), end="")
    for piece in pieces:
        out.print(Text(plain(str(piece))), end="", soft_wrap=True)
    out.print()


@app.command(help="Show versions, threads, memory and assets; compare the model with transformers.")
def doctor(model: Model = DEFAULT) -> None:
    """Show versions, threads, memory and assets, and compare the model with transformers.

    Raises:
        Exit: With code 1 if the logits differ.
    """
    from workbench import doctor as checks

    for title, rows in checks.facts():
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows:
            table.add_row(name, Text(value))
        out.print(table)
    out.print(_assets_table())
    parity = checks.parity(model)
    style = "green" if parity.passed else "red"
    out.print(Text(str(parity), style=style))
    if not parity.passed:
        raise typer.Exit(1)


@app.command(help="Hold a model to transformers and to what must add up; keep the report.")
def verify(name: Annotated[str, typer.Argument(help="What load takes.")] = DEFAULT) -> None:
    """Hold a model to transformers and to what must add up; keep the report.

    Raises:
        Exit: With code 1 if a check failed.
    """
    import workbench as wb

    report = wb.verify(name)
    columns = report.table().columns
    table = Table(title=plain(f"{report.model} ({report.fingerprint})"), title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column in ("check", "measured"))
    for row in report.table().rows():
        cells = [Text(plain(str(cell))) for cell in row.values()]
        table.add_row(*cells, style="red" if row["passed"] == "NO" else "")
    out.print(table)
    for check, reason in report.left_out.items():
        out.print(Text(plain(f"not checked: {check} ({reason})"), style="dim"))
    if not report.passed:
        raise typer.Exit(1)


@app.command(help="Show which families of models are native, and what is special to each.")
def models(
    *,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As docs/families.md.")] = False,
) -> None:
    """Show which families of models are native, and what is special to each."""
    from workbench.models import overview

    known = overview.families()
    if as_markdown:
        out.print(Text(overview.markdown(known)), end="", soft_wrap=True)
        return
    made = overview.table(known)
    table = Table(title="families", title_justify="left")
    for column in made.columns:
        table.add_column(column, no_wrap=column == "family", overflow="fold")
    for row in made.rows():
        table.add_row(*(Text(str(cell)) for cell in row.values()))
    out.print(table)
    try:
        tail = ", ".join(overview.long_tail(known))
    except MissingDependencyError as error:
        tail = str(error)
    out.print(Text(f"through transformer-lens (docs/foreign.md): {tail}"), soft_wrap=True)


@app.command(name="app", help="Serve the app in the browser, on this machine only.")
def serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8501,
    model: Model = DEFAULT,
) -> None:
    """Serve the app in the browser, on this machine only.

    Raises:
        Exit: With the server's code.
    """
    from workbench.serve import serve_app

    raise typer.Exit(serve_app(port=port, model=model))


def plain(text: str) -> str:
    """Text that cannot command a terminal: no control characters but new lines and tabs.

    What turns the direction of writing around is shown as U+FFFD too; joiners are part of a text.
    """
    return "".join("\ufffd" if _commands(c) else c for c in text)


def _commands(character: str) -> bool:
    turns = unicodedata.bidirectional(character) in TURNS
    return turns or (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t")


def _assets_table() -> Table:
    from workbench.models import assets

    table = Table(title="assets", title_justify="left")
    names = [row.name for row in assets.status()]
    table.add_column("asset", no_wrap=True, min_width=max(map(len, names)))  # what is to be typed
    for column in ("here", "MB", "licence", "what it is"):
        table.add_column(column)
    for row in assets.status():
        known = assets.find_asset(row.name)
        here = "yes" if row.present else "no"
        size = f"{row.n_bytes / 1e6:.0f}" if row.present else ""
        table.add_row(row.name, here, size, row.licence, known.description)
    return table


def _receipts(receipts: tuple["object", ...]) -> None:
    from workbench.core.ledger import Receipt

    for receipt in receipts:
        if isinstance(receipt, Receipt):
            out.print(
                Text(
                    f"{plain(receipt.intervention)}: acted {receipt.acted}x on "
                    f"{receipt.tokens} tokens, change {receipt.change:.3g}",
                    style="dim",
                )
            )


def _shown(model: "object", token: int) -> str:
    from workbench.core.protocols import Model as AnyModel

    if isinstance(model, AnyModel) and model.tokenizer is not None:
        return repr(model.tokenizer.token_text(token))
    return str(token)
