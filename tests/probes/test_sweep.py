"""The sweep: it finds what was planted, reports chance as chance, and never tests on its choice."""

import math
from pathlib import Path

import pytest
import torch

import probes
import workbench as wb
from probes.crossfit import cross_fit, split_of
from probes.data import TextData
from probes.methods.logistic import Logistic
from probes.methods.mean_difference import MeanDifference
from probes.report import ProbeReport
from tests import tiny
from tests.probes.planted import gaussian_pair, letters
from workbench.core.errors import CancelledError, OptionError, UnknownNameError
from workbench.core.harvest import harvest

STREAM = ["hook_embed", "blocks.*.hook_resid_post"]


@pytest.fixture(scope="module")
def first_letter() -> ProbeReport:
    """Where the last position knows the first letter: not before attention has run."""
    return probes.sweep(tiny.model(), letters(400, at=0), STREAM)


def test_a_planted_site_is_found(first_letter: ProbeReport) -> None:
    embed, *after = first_letter.accuracy.tolist()
    low, high = float(first_letter.low[0]), float(first_letter.high[0])
    assert low < 0.5 < high  # the embedding of the last letter knows nothing of the first
    assert embed < min(after)
    best = first_letter.best
    assert str(best.site) != "hook_embed"
    assert best.low > best.majority
    assert best.accuracy > best.shuffled
    assert all(str(site) != "hook_embed" for site in first_letter.selection.sites)


def test_shuffled_labels_are_at_chance(first_letter: ProbeReport) -> None:
    shuffled = first_letter.shuffled
    assert shuffled.shape == (4, 20)
    noise = 0.5 / math.sqrt(400 * 20)
    assert float((shuffled.mean(1) - 0.5).abs().max()) < 5 * noise
    assert bool((first_letter.shuffled_95 > shuffled.mean(1)).all())


def test_the_row_of_a_site_equals_cross_fitting_it_alone(first_letter: ProbeReport) -> None:
    data, site = letters(400, at=0), "blocks.1.hook_resid_post"
    rows = next(iter(harvest(tiny.model(), data.texts, site).rows.values()))
    split = split_of(data, 5, 20, 0)
    alone = cross_fit(Logistic(), rows, split)
    index = [str(one) for one in first_letter.sites].index(site)
    assert torch.equal(first_letter.folds, split.fold)
    assert torch.equal(first_letter.right[index], alone.right)
    assert float(first_letter.accuracy[index]) == pytest.approx(float(alone.right.double().mean()))


def test_the_selected_accuracy_is_that_of_the_sites_chosen_fold_by_fold(
    first_letter: ProbeReport,
) -> None:
    picked = first_letter.inner_accuracy.argmax(0)
    right = [
        bool(first_letter.right[picked[fold], row])
        for row, fold in enumerate(first_letter.folds.tolist())
    ]
    assert first_letter.selected_accuracy == pytest.approx(sum(right) / len(right))
    assert first_letter.best.accuracy == first_letter.selected_accuracy
    sites = [first_letter.sites[index] for index in picked.tolist()]
    assert list(first_letter.selection.sites) == sites


def test_choosing_among_sites_of_noise_is_worth_nothing() -> None:
    # 25 data sets of noise at 8 sites: the best score is above chance, the nested one is not.
    best: list[float] = []
    nested: list[float] = []
    for seed in range(25):
        y = tuple((torch.arange(80) % 2).tolist())
        data = TextData("noise", tuple(map(str, range(80))), y, ("no", "yes"), tuple(range(80)))
        split = split_of(data, 4, 1, seed)
        draws = torch.Generator().manual_seed(seed)
        sites = torch.randn(8, 80, 6, generator=draws)
        fits = [cross_fit(MeanDifference(), x, split) for x in sites]
        right = torch.stack([fit.right for fit in fits]).double()
        chosen = torch.stack([fit.inner_accuracy for fit in fits]).argmax(0)
        best.append(float(right.mean(1).max()))
        nested.append(float(right.gather(0, chosen[split.fold][None]).mean()))
    error = 0.5 / math.sqrt(80 * 25)
    assert sum(best) / 25 > 0.5 + 4 * error
    assert sum(nested) / 25 == pytest.approx(0.5, abs=4 * error)


def test_a_group_is_never_in_training_and_test() -> None:
    # The label is the group's own: only a probe that has seen the group can know it.
    data = letters(240, at=0, groups=24)
    labels = tuple(group * 7 % 24 % 2 for group in data.groups)
    texts = tuple(
        "abcdefghijklmnopqrstuvwx"[group] * 6 + text[:2]
        for group, text in zip(data.groups, data.texts, strict=True)
    )
    grouped = TextData("grouped", texts, labels, ("even", "odd"), data.groups)
    leaky = TextData("leaky", texts, labels, ("even", "odd"), tuple(range(240)))
    site = "blocks.0.hook_resid_post"
    honest = probes.sweep(tiny.model(), grouped, site, "mean").selected_accuracy
    assert probes.sweep(tiny.model(), leaky, site, "mean").selected_accuracy > 0.95
    assert honest < 0.75


def test_equal_texts_share_a_fold_whatever_the_groups_say() -> None:
    data = letters(60, at=0)
    twice = TextData("twice", data.texts * 2, data.labels * 2, data.label_names, tuple(range(120)))
    fold = split_of(twice, 5, 1, 0).fold
    assert torch.equal(fold[:60], fold[60:])


def test_a_report_is_a_result_that_prints_and_is_read_back(
    first_letter: ProbeReport, tmp_path: Path
) -> None:
    rows = first_letter.table().rows()
    assert [row["site"] for row in rows] == list(map(str, first_letter.sites))
    for row in rows:
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["n"] == 400
    back = wb.load_result(first_letter.save(tmp_path / "report.safetensors"))
    assert torch.equal(back.values()["accuracy"], first_letter.accuracy)
    assert back.provenance.data == first_letter.provenance.data
    assert [check.name for check in back.checks] == [
        "selected accuracy",
        "majority",
        "shuffled labels",
        "gain over bag of words",
    ]
    assert str(first_letter.best.site) in repr(first_letter)
    assert first_letter.earliest in first_letter.sites


def test_the_direction_remembers_its_making_and_steers(first_letter: ProbeReport) -> None:
    model, direction = tiny.model(), first_letter.direction()
    site = first_letter.best.site
    assert direction.site == site
    assert direction.provenance.parameters["site"] == str(site)
    assert direction.provenance.fingerprint == model.fingerprint
    assert direction.label == "n-z"
    probe = first_letter.probes[site]
    steer = first_letter.best.direction
    assert steer is not None
    calm, steered = (
        wb.run(model, letters(20, at=0, seed=9).texts, plan=plan, record=[site])[site][:, -1]
        for plan in ([], [steer.at(4.0, unit="sigma")])
    )
    assert float(probe.predict(steered).double().mean()) > 0.9
    assert float(probe.predict(calm).double().mean()) < 0.8


def test_a_limit_takes_a_balanced_part_and_says_how_many() -> None:
    report = probes.sweep(tiny.model(), letters(300, at=7), "hook_embed", limit=120, n_shuffles=2)
    assert report.n == 120
    assert report.majority <= 0.5
    assert report.provenance.parameters["limit"] == 120
    # The last letter is in the embedding of the last position: 26 points in 24 dimensions.
    assert float(report.accuracy[0]) > 0.9


def test_a_sweep_is_repeatable_and_methods_have_names() -> None:
    data, site = letters(120, at=0), "blocks.2.hook_resid_post"
    one = probes.sweep(tiny.model(), data, site, method="mean-difference", n_shuffles=2)
    other = probes.sweep(
        tiny.model(), data, site, method=probes.METHODS["mean_difference"], n_shuffles=2
    )
    for name, values in one.values().items():
        assert torch.equal(values, other.values()[name])
    assert one.table().columns == other.table().columns
    assert one.provenance.method == "MeanDifference"


def test_progress_is_told_and_a_check_cancels() -> None:
    told: list[tuple[int, int]] = []
    probes.sweep(
        tiny.model(),
        letters(60, at=0),
        STREAM,
        n_shuffles=1,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told)
    assert told[-1] == (120, 120)
    assert len(told) >= 5

    def cancel() -> None:
        raise CancelledError("enough")

    with pytest.raises(CancelledError, match="enough"):
        probes.sweep(tiny.model(), letters(60, at=0), STREAM, check=cancel)
    x, split = tiny.normal(60, 4), split_of(letters(60, at=0), 5, 1, 0)
    with pytest.raises(CancelledError, match="enough"):  # between fits, too
        cross_fit(Logistic(), x, split, check=cancel)


def test_many_classes_have_a_direction_each() -> None:
    data = letters(200, at=7)
    thirds = tuple(min(2, (ord(text[7]) - 97) // 9) for text in data.texts)
    three = TextData("thirds", data.texts, thirds, ("a", "j", "s"), data.groups)
    report = probes.sweep(tiny.model(), three, "hook_embed", n_shuffles=2)
    assert report.best.direction is None
    assert report.direction(of=2).label == "s"
    assert report.selected_accuracy > report.majority + 0.2
    with pytest.raises(OptionError, match="of must be a class from 0 to 2, got None"):
        report.direction()
    with pytest.raises(OptionError, match="of must be a class from 0 to 2, got 3"):
        report.direction(of=3)


def test_what_cannot_be_swept_is_a_typed_error() -> None:
    model, data = tiny.model(), letters(60, at=0)
    with pytest.raises(UnknownNameError, match=r"No method named 'logstic'.*logistic"):
        probes.sweep(model, data, method="logstic")
    with pytest.raises(UnknownNameError, match=r"No site named 'blocks.9.hook_resid_post'"):
        probes.sweep(model, data, "blocks.9.hook_resid_post")
    with pytest.raises(OptionError, match="n_shuffles must be 1 or more"):
        probes.sweep(model, data, n_shuffles=0)
    one = TextData("one", data.texts, (0,) * 60, data.label_names, data.groups)
    with pytest.raises(OptionError, match=r"data\.labels must be of two classes"):
        probes.sweep(model, one)
    outer = tuple(2 * label for label in data.labels)
    gap = TextData("gap", data.texts, outer, ("low", "middle", "high"), data.groups)
    with pytest.raises(OptionError, match=r"of every class; .* got \"none of 'middle'\""):
        probes.sweep(model, gap)
    with pytest.raises(OptionError, match="n_folds must be 2 to"):
        probes.sweep(model, data, n_folds=61)
    with pytest.raises(UnknownNameError, match="The sweep did not read it"):
        probes.sweep(model, data, "hook_embed", n_shuffles=1).direction("blocks.0.hook_resid_post")


def test_a_site_where_all_rows_are_equal_is_at_chance_and_stops_no_sweep() -> None:
    data = letters(120, at=0)
    same = tuple(f"{text[:-1]}z" for text in data.texts)
    data = TextData("same end", same, data.labels, data.label_names, data.groups)
    report = probes.sweep(tiny.model(), data, STREAM, n_shuffles=2)
    assert float(report.accuracy[0]) == report.majority
    assert report.best.site != report.sites[0]


def test_rows_of_a_model_in_half_precision_are_read_too() -> None:
    x, y, _ = gaussian_pair(200, 4)
    probe = Logistic().fit(x.bfloat16(), y)
    assert probe.inner_accuracy > 0.7
