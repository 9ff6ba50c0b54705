"""The Python that makes what a page shows, with the page's own prompt and plan filled in."""

from app.state import BUILT_IN, Edit, Investigation, Recipe

ROWS = 'rows = ["blocks.0.hook_resid_pre", "blocks.*.hook_resid_post"]  # embedding, then layers'


def script(state: Investigation, *body: str) -> str:
    """A whole script: the model, the prompt, the plan, and then `body`."""
    steers = [edit.recipe for edit in state.active if edit.recipe is not None]
    lines = ["import workbench as wb"]
    if steers or any("STEERING" in line for line in body):
        lines.append("from workbench.steering import METHODS as STEERING")
    lines += [*_load(state.model), _prompt(state)]
    lines += [f"plan = [{_list(state.active)}]"]
    return "\n".join([*lines, "", *body]) + "\n"


def _prompt(state: Investigation) -> str:
    if state.pos is None or state.pos < 0:
        return f"prompt = {state.prompt!r}"
    return f"prompt = model.tokenizer.encode({state.prompt!r})[: {state.pos + 1}]  # as far as read"


def _load(model: str) -> list[str]:
    if model != BUILT_IN:
        return ["", f"model = wb.load({model!r})"]
    return [
        "from workbench.attribution.known_truth import induction",
        "",
        "model = induction.build().model",
    ]


def direction(recipe: Recipe) -> str:
    """The expression that makes a direction."""
    return (
        f"STEERING[{recipe.method!r}](model, positive={list(recipe.positive)!r},\n"
        f"    negative={list(recipe.negative)!r}, site={recipe.site!r})"
    )


def _list(edits: tuple[Edit, ...]) -> str:
    if not edits:
        return ""
    return "\n    " + "\n    ".join(f"{_edit(edit)}," for edit in edits) + "\n"


def _edit(edit: Edit) -> str:
    where = f", heads={list(edit.heads)!r}" if edit.heads else ""
    where += f", positions={list(edit.positions)!r}" if edit.positions else ""
    if edit.op == "steer" and edit.recipe is not None:
        return f'{direction(edit.recipe)}.at({edit.strength!r}, unit="gap"{where}, optional=True)'
    operator = "zero()" if edit.op == "zero" else f"scale({edit.factor!r})"
    where += f", strength={edit.strength!r}" if edit.strength != 1 else ""
    return f"wb.Intervention({edit.site!r}, wb.ops.{operator}{where}, optional=True)"
