# %% [markdown]
"""# Where does a model know that a review is positive, and does it use that?

A logistic probe reads the last token's residual stream after every block of SmolLM2 on sentences
from movie reviews, rated by people. Its direction, at the site that was chosen on inner folds, is
then *written* into another prompt. Open this file as a notebook (Jupytext, VS Code, PyCharm), or
read it as it is. About three minutes on two cores.
"""

# ruff: noqa: B018
# pyright: reportUnusedExpression=false

# %%
import probes
import workbench as wb

LIMIT = 2000  # of 9,173 sentences; None reads them all

model = wb.load("smollm2-135m-instruct")
data = probes.datasets.load("movie-reviews")
data.counts()

# %% [markdown]
"""
## Reading

Each accuracy is out of fold, and duplicates of a text stay in one fold. Beside it stand what the
commonest class gives, what shuffled labels give, and what a bag of words gives in the same folds.
"""

# %%
report = probes.sweep(model, data, limit=LIMIT)
report.table()

# %% [markdown]
"""
`best.accuracy` is not the highest number of the table: that one is too good by having been chosen.
It is what one gets who chooses the site on inner folds and tests it on rows that had no say.
"""

# %%
best = report.best
best

# %%
report.checks

# %% [markdown]
"""
## Writing

Reading does not show that the model uses what is read. So the probe's *pattern*, which is how the
stream varies with the class, is added at every position of another prompt, some spreads within a
class (sigma) long. If the model uses it, its next word changes with the dose.
"""

# %%
prompt = "I watched the film last night. It was"
praise = wb.metrics.logit_difference(
    wb.Contrast(clean=prompt, corrupt=prompt, target=" great", foil=" terrible")
)
direction = report.direction()
doses = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)
response = wb.sweep(model, prompt, [direction.at(dose, unit="sigma") for dose in doses], praise)
effects = dict(zip(doses, response.effects[:, 0].tolist(), strict=True))
effects

# %%
strengths = {"negative": -3.0, "unchanged": 0.0, "positive": 3.0}
continuations = {
    name: wb.generate(
        model, prompt, plan=[direction.at(strength, unit="sigma")], max_new_tokens=24
    ).texts[0]
    for name, strength in strengths.items()
}
continuations
