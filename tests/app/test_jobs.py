"""The worker's answers on the built-in model, whose numbers are known exactly."""

import io
import threading
import zipfile
from typing import Any

import numpy as np
import pytest

import workbench as wb
from app import specs
from app.host import Host, Job
from app.jobs import start
from app.jobs._bench import Bench
from app.jobs.lens import window_of
from app.jobs.steer import repeated
from app.specs import Spec
from app.state import Edit, Recipe
from app.views.steer import WORTH
from workbench.attribution.known_truth import induction

PROMPT = induction.CLEAN
ASKED: dict[str, Any] = {
    "model": "induction",
    "prompt": PROMPT,
    "target": "g",
    "foil": "a",
    "pos": None,
}
CUT = Edit("zero", "blocks.1.attn.hook_z", heads=(0,))
RECIPE = Recipe(("abcdab", "efghef"), ("abcdef", "efghab"), 0)


@pytest.fixture(scope="module")
def ask():
    run = start()

    def answer(spec: Spec) -> Any:
        return run(spec, Job(spec))

    return answer


def test_the_reading_is_the_known_answer(ask):
    reading = ask(specs.Read(**ASKED, plan=()))
    assert reading.before == pytest.approx(10.0, abs=1e-5)
    assert (reading.top[0].text, reading.target_rank, reading.pos) == ("g", 1, 12)
    assert reading.tokens == tuple(PROMPT)
    assert reading.after is None


def test_the_plan_changes_what_it_should(ask):
    reading = ask(specs.Read(**ASKED, plan=(CUT,)))
    assert reading.before == pytest.approx(10.0, abs=1e-5)
    assert reading.after == pytest.approx(0.0, abs=1e-5)
    (receipt,) = reading.receipts
    assert (receipt.acted, receipt.tokens) == (1, 13)


def test_an_earlier_position_is_a_shorter_prompt(ask):
    early = ask(specs.Read("induction", PROMPT, "g", "a", 9, ()))
    short = ask(specs.Read("induction", PROMPT[:10], "g", "a", None, ()))
    assert early.before == short.before
    assert len(early.tokens) == 13


def test_target_and_foil_default_to_the_models_own_choice(ask):
    reading = ask(specs.Read("induction", PROMPT, None, None, None, ()))
    assert reading.answer.target == "g"
    assert reading.answer.target_automatic
    assert reading.answer.foil_automatic
    assert ask(specs.Read("induction", PROMPT, "a", None, None, ())).answer.foil == "g"


def test_the_parts_add_up_to_the_metric_with_and_without_a_plan(ask):
    steer = Edit("steer", RECIPE.site, strength=0.5, recipe=RECIPE)
    half = Edit("scale", "blocks.0.attn.hook_z", factor=0.5)
    for plan in ((), (CUT,), (half,), (steer,), (Edit("zero", "blocks.0.hook_resid_post"), steer)):
        scores = ask(specs.Components(**ASKED, plan=plan))
        reading = ask(specs.Read(**ASKED, plan=plan))
        metric = reading.before if reading.after is None else reading.after
        assert scores.total == pytest.approx(metric, abs=1e-5)
        assert scores.metric == pytest.approx(metric, abs=1e-5)


def test_the_head_that_does_it_is_named(ask):
    scores = ask(specs.Components(**ASKED, plan=()))
    best = int(np.argmax(scores.values))
    assert (scores.names[best], scores.layers[best], scores.heads[best]) == ("L1H0", 1, 0)


def test_the_lens_ends_at_the_model(ask):
    lens = ask(specs.Lens(**ASKED, plan=()))
    assert lens.layers == ("embed", "0", "1")
    assert lens.probs.shape[:2] == (3, 13)
    assert lens.residual < 1e-6
    assert lens.texts[-1][-1][0] == "g"
    path = ask(specs.Trajectory(**ASKED, plan=()))
    assert path.residual < 1e-5
    assert path.target_rank.tolist() == [1, 1, 1]  # at first all sixteen letters are as likely
    assert path.target_alone.tolist() == [False, False, True]
    assert lens.target_alone.tolist() == [False, False, True]
    assert path.foil_rank[-1] == ask(specs.Read(**ASKED, plan=())).foil_rank
    assert path.target_prob[-1] == pytest.approx(lens.probs[-1, -1, 0], abs=1e-6)


def test_a_plan_taken_along_runs_as_it_is(ask, tmp_path):
    edits = (CUT, Edit("steer", RECIPE.site, strength=-0.5, recipe=RECIPE))
    packed = ask(specs.Pack("induction", edits))
    with zipfile.ZipFile(io.BytesIO(packed.data)) as archive:
        assert archive.namelist() == ["plan.json", "plan.safetensors"]
        archive.extractall(tmp_path)
    model, plan = induction.build().model, wb.Plan.load(tmp_path)
    logits = wb.run(model, PROMPT, plan=plan, positions="last").answer_logits[0]
    assert model.tokenizer is not None
    target, foil = (model.tokenizer.single(text) for text in "ga")
    reading = ask(specs.Read(**ASKED, plan=edits))
    assert float(logits[target] - logits[foil]) == pytest.approx(reading.after, abs=1e-5)


def test_attention_is_the_runs_own(ask):
    mosaic = ask(specs.Attention("induction", PROMPT, ()))
    head = ask(specs.Head("induction", PROMPT, (), 1, 0))
    site = "blocks.1.attn.hook_pattern"
    trace = wb.run(induction.build().model, PROMPT, record=[site])
    np.testing.assert_allclose(head.pattern, trace[site][0, 0].numpy(), atol=1e-6)
    np.testing.assert_allclose(mosaic.tiles[1, 0], head.pattern, atol=1e-6)
    np.testing.assert_allclose(mosaic.besides[1, 0][:, 1:], head.pattern[:, 1:], atol=1e-6)
    assert not mosaic.besides[..., 0].any()
    assert mosaic.rowsum < 1e-6
    assert head.pattern[12].argmax() == 5  # "d" stood at 4; induction reads what followed


def test_a_head_that_is_not_there_is_an_error_of_ours(ask):
    with pytest.raises(wb.WorkbenchError, match="L7H0"):
        ask(specs.Head("induction", PROMPT, (), 7, 0))


def test_steering_at_strength_0_is_the_baseline_bit_for_bit(ask):
    dose = ask(specs.Dose(**ASKED, plan=(), recipe=RECIPE, strengths=(-1.0, 0.0, 1.0)))
    assert dose.zero == 0.0
    assert dose.metric[1] == dose.base
    assert dose.divergence[1] == 0.0
    twin = specs.Twin("induction", "abcda", (), RECIPE, 0.0, 6, 0.7, 3)
    result = ask(twin)
    assert result.identical
    assert result.base == result.steered
    assert result.base_perplexity == result.steered_perplexity
    assert not result.divergence.any()


def test_both_texts_are_written_with_the_same_noise(ask):
    spec = specs.Twin("induction", "abcda", (), RECIPE, 40.0, 6, 1.5, 3)
    job = Job(spec)
    result: Any = start()(spec, job)
    assert result.base == ask(specs.Twin("induction", "abcda", (), RECIPE, 0.0, 6, 1.5, 3)).base
    published = ["", ""]
    pieces: Any = job.partial
    for row, text in pieces:
        published[row] += text
    assert published == ["".join(result.base), "".join(result.steered)]
    assert job.done == 6


def test_the_built_in_steering_example_works_and_generalises(ask):
    example = ask(specs.About("induction")).steering
    recipe = Recipe(example.positive, example.negative, 0)
    worth = {q.name: q.value for q in ask(specs.Direct("induction", recipe)).quality}
    assert all(WORTH[name](worth[name]) for name in WORTH)
    dose = ask(specs.Dose(**ASKED, plan=(), recipe=recipe, strengths=(-0.75, 0.0, 1.0)))
    assert dose.metric == pytest.approx([-10.0, 10.0, 10.0], abs=1e-3)
    assert ask(specs.Twin("induction", example.prompt, (), recipe, 0.0, 3, 0.0, 0)).base[0] == "g"
    assert (
        ask(specs.Twin("induction", example.prompt, (), recipe, -0.75, 3, 0.0, 0)).steered[0] == "a"
    )


def test_a_direction_has_its_quality_beside_it(ask):
    card = ask(specs.Direct("induction", RECIPE))
    assert card.count == 4
    assert {q.name for q in card.quality} >= {"held-out d'", "p of chance"}


def test_two_models_stay_loaded_and_a_third_drops_the_oldest():
    bench = Bench()
    first = bench.model("induction")
    assert bench.model("induction") is first


@pytest.mark.parametrize(
    ("count", "pos", "window"),
    [(14, 13, range(14)), (100, 99, range(76, 100)), (100, 3, range(24)), (100, 50, range(28, 52))],
)
def test_the_window_of_a_long_prompt_holds_the_position_read(count, pos, window):
    assert window_of(count, pos) == window
    assert pos in window


def test_a_repeated_phrase_is_found():
    assert repeated(tuple("abcdabcdabcd")) == ("abcd", 3)
    assert repeated(tuple("abcdefgh")) is None
    assert repeated(()) is None


def test_plans_of_one_session_never_touch_anothers_answers():
    host = Host(start, cache=0)  # no cache: every question is computed
    host.open()
    clean = [specs.Read("induction", PROMPT[: 6 + n], "g", "a", None, ()) for n in range(7)]
    cuts = [Edit("scale", f"blocks.{n % 2}.attn.hook_z", factor=n / 7) for n in range(7)]
    cut = [specs.Read("induction", PROMPT[: 6 + n], "g", "a", None, (cuts[n],)) for n in range(7)]
    expected = [_read(host, spec) for spec in clean]
    wrong: list[int] = []

    def ask_clean() -> None:
        for turn in range(150):
            reading = _read(host, clean[turn % 7])
            if (reading.before, reading.top) != (expected[turn % 7].before, expected[turn % 7].top):
                wrong.append(turn)

    def ask_cut() -> None:
        for turn in range(150):
            _read(host, cut[turn % 7])

    threads = [threading.Thread(target=work) for work in (ask_clean, ask_cut, ask_cut)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    host.close()
    assert wrong == []


def _read(host: Host, spec: specs.Read) -> Any:
    job = host.submit(spec)
    assert job.ended.wait(30)
    assert job.failure is None
    return job.result


def test_the_strongest_keys_are_those_of_the_whole_prompt(ask, monkeypatch):
    monkeypatch.setattr("app.jobs.attention.LARGE", 4)
    head = ask(specs.Head("induction", PROMPT, (), 1, 0))
    assert (head.first, head.length, len(head.tokens)) == (9, 13, 4)
    assert head.pattern.shape == (4, 4)
    assert int(head.keys[-1, 0]) == 5  # outside the window, and found
    assert head.key_texts[-1][0] == PROMPT[5]
    early = ask(specs.Head("induction", PROMPT, (), 1, 0, 6))
    assert early.first == 3
