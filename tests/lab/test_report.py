"""The report: rebuilt from recipe and records alone, complete or partial, with one run or many.

The records here are synthetic (a seeded function below); they only have the shape of real ones.
"""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from torchcbl.lab.recipe import ARM_NAMES, Recipe, load_recipe
from torchcbl.lab.records import EpochRecord, Record, TestRecord, read_records, write_record
from torchcbl.lab.report import build_report, table, tables
from torchcbl.lab.report.beyond import beyond, overall, sentences
from torchcbl.lab.report.drawing import as_png, as_svg, canvas, log_scale, styled
from torchcbl.lab.report.families import compare_arms
from torchcbl.lab.report.figures import colour, draw, marker
from torchcbl.lab.report.findings import Findings, findings_of
from torchcbl.lab.report.page import render
from torchcbl.lab.report.verdict import format_p, verdict
from torchcbl.lab.statistics import compare, compare_all

ARMS = ("standard", "cbl", "cbl-gate")
ONE_STEP = ("standard", "wider-params", "wider-flops", "ensemble", "loop-free", "as-released-standard")
MANY = tuple(arm for arm in ARM_NAMES if not arm.startswith("as-released"))


def a_recipe(arms: tuple[str, ...] = ARMS, seeds: int = 2, epochs: int = 3, name: str = "cifar10") -> Recipe:
    return dataclasses.replace(load_recipe(name), arms=arms, seeds=seeds, epochs=epochs)


def a_record(recipe: Recipe, arm: str, seed: int) -> Record:
    rng = np.random.default_rng([ARM_NAMES.index(arm), seed])
    loops = 1 if arm in ONE_STEP else recipe.steps + 1
    epochs = []
    for epoch in range(1, recipe.epochs + 1):
        share = 1 - math.exp(-epoch / 4)
        accuracy = np.clip(0.10 + 0.69 * share + 0.01 * rng.normal(size=loops), 0, 1)
        loss = 2.3 - 1.6 * share + 0.02 * rng.normal(size=loops)
        rate = recipe.learning_rate / 2 ** ((epoch - 1) // 5)
        epochs.append(EpochRecord(epoch, rate, loss[-1] - 0.1, tuple(loss), tuple(accuracy), 40.0 * loops))
    test = epochs[-1].validation_accuracy
    return Record(
        schema=1,
        study=recipe.name,
        arm=arm,
        seed=seed,
        recipe=recipe.as_dict(),
        versions={"torchcbl": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        machine={"system": "Linux", "processor": "some processor", "cores": 2, "threads": 1, "device": "cpu"},
        parameters={"backbone": 336_794, "added": 0 if arm == "standard" else 21_000},
        flops={"first": 1.2e7, "step": 1.1e7 * (loops > 1), "inference": 1.2e7 + 1.1e7 * (loops - 1)},
        epochs=tuple(epochs),
        test=TestRecord(10_000, epochs[-1].validation_loss, tuple(round(value, 4) for value in test)),
        seconds={"training": 40.0 * loops * recipe.epochs + seed, "total": 50.0 * loops * recipe.epochs},
        finished="2026-01-01T00:00:00+00:00",
    )


def a_study(recipe: Recipe) -> list[Record]:
    return [a_record(recipe, arm, seed) for arm in recipe.arms for seed in range(recipe.seeds)]


def write_study(folder: Path, recipe: Recipe, records: list[Record]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(recipe.as_toml(), "utf-8")
    for record in records:
        write_record(folder, record)
    return folder


class Page(HTMLParser):
    """Collects what a page refers to, its ids, tables and text, and checks that its elements nest."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "srcset", "data"):
                self.references.append(value or "")
            if key == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_self_contained_and_complete(tmp_path: Path) -> None:
    recipe = a_recipe()
    report = build_report(write_study(tmp_path, recipe, a_study(recipe)))
    source = report.page.read_text("utf-8")
    page = Page(source)
    assert page.open == []
    assert page.references, "the figures' glyphs are referred to inside the page"
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in source
    assert "url(http" not in source
    assert page.tags.count("svg") == 7
    assert page.tags.count("table") == 8
    assert "cifar10: 2 seeds, 3 epochs (the paper's protocol: 5 seeds, 20 epochs)" in page.text
    assert "Complete: all 6 runs finished." in page.text
    for sentence in findings_of(a_study(recipe)).verdicts:
        assert sentence in page.text
    (found,) = beyond(findings_of(a_study(recipe)))
    for sentence in (overall(found), *sentences(found)):
        assert sentence in page.text
    assert 'name="viewport"' in source
    assert "$" not in page.text
    assert [path.name for path in report.figures] == [
        "validation_loss.png",
        "validation_accuracy.png",
        "accuracy_by_step.png",
        "convergence_loss.png",
        "convergence_accuracy.png",
        "paired_differences.png",
        "beyond-cbl.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.figures)


def test_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    recipe = a_recipe()
    reports = [build_report(write_study(tmp_path / name, recipe, a_study(recipe))) for name in "ab"]
    for paths in zip(*((report.page, report.table, report.beyond, *report.figures) for report in reports), strict=True):
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_numbers_in_the_table_are_the_records(tmp_path: Path) -> None:
    recipe = a_recipe()
    records = a_study(recipe)
    text = build_report(write_study(tmp_path, recipe, records)).table.read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| cbl |")]
    scores = [100 * record.test.accuracy[-1] for record in records if record.arm == "cbl"]
    assert rows[0][1:3] == [f"{score:.2f}" for score in scores]
    mean, std = np.mean(scores), np.std(scores, ddof=1)
    assert rows[0][3:] == [f"{mean:.2f} ± {std:.2f}", "2", "cpu", "360"]
    baseline = [100 * record.test.accuracy[-1] for record in records if record.arm == "standard"]
    paired = [f"{one - other:+.2f}" for one, other in zip(scores, baseline, strict=True)]
    assert rows[1][-1] == " ".join(paired)
    assert "cbl takes 2.83 times the FLOPs per image and 2.99 times the training time of standard." in text


def test_markdown_rows_have_as_many_cells_as_the_header(tmp_path: Path) -> None:
    recipe = a_recipe(seeds=3)
    text = build_report(write_study(tmp_path, recipe, a_study(recipe))).table.read_text("utf-8")
    for block in text.split("\n\n"):
        counts = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(counts) <= 1


@pytest.mark.parametrize(("seeds", "epochs"), [(1, 1), (1, 3), (2, 1)])
def test_smallest_studies_build(tmp_path: Path, seeds: int, epochs: int) -> None:
    recipe = a_recipe(seeds=seeds, epochs=epochs)
    records = a_study(recipe)
    text = Page(build_report(write_study(tmp_path, recipe, records)).page.read_text("utf-8")).text
    assert ("no test possible with one seed" in text) is (seeds == 1)
    axes = draw(findings_of(records))["validation_loss"].axes[0]
    titles = draw(findings_of(records))["paired_differences"].get_suptitle()
    assert ("No test possible" in titles) is (seeds == 1)
    assert all(line.get_marker() not in ("", "None") for line in axes.lines if line.get_linewidth() > 2)


def test_a_run_that_diverged_is_named() -> None:
    records = a_study(a_recipe())
    lost = dataclasses.replace(records[0].test, loss=(math.nan,) * len(records[0].test.loss))
    said = findings_of([dataclasses.replace(records[0], test=lost), *records[1:]]).verdicts
    assert said[-1] == f"Diverged, to a loss that is no finite number: {records[0].name}."
    assert not any("Diverged" in sentence for sentence in findings_of(records).verdicts)


def test_partial_study_names_the_missing_runs(tmp_path: Path) -> None:
    recipe = a_recipe()
    records = [record for record in a_study(recipe) if record.name not in ("cbl-seed1", "cbl-gate-seed0")]
    page = Page(build_report(write_study(tmp_path, recipe, records)).page.read_text("utf-8"))
    assert "Partial: 4 of 6 runs finished, and its tests are not corrected for looking before the end;" in page.text
    assert "the end; missing: cbl-seed1, cbl-gate-seed0." in page.text
    assert "Left out: seed 1, finished in only one of the two arms." in page.text


def test_what_fewer_seeds_than_planned_show_is_called_a_lead() -> None:
    recipe = a_recipe(("standard", "wider-params"), seeds=3)
    gains = (5.0, 5.1, 5.3)
    tests = [
        (arm, seed, 0.7 + (gains[seed] / 100 if arm != "standard" else 0)) for arm in recipe.arms for seed in range(3)
    ]
    records = []
    for arm, seed, accuracy in tests:
        record = a_record(recipe, arm, seed)
        records.append(dataclasses.replace(record, test=dataclasses.replace(record.test, accuracy=(accuracy,))))
    assert Findings(recipe, tuple(records)).verdicts[0].endswith("a difference is shown.")
    partial = Findings(recipe, tuple(record for record in records if record.seed < 2))
    assert partial.verdicts[0].endswith("a difference is shown; at 2 of 3 seeds it is a lead.")


def test_each_loop_is_corrected_for_the_loops_on_its_network() -> None:
    records = [
        dataclasses.replace(one, test=dataclasses.replace(one.test, accuracy=(0.5, *one.test.accuracy[1:])))
        if one.arm == "cbl"  # far above its own step 0, so that Holm leaves the other test at its own p
        else one
        for one in a_study(a_recipe(seeds=5))
    ]
    study = findings_of(records)
    cbl, gate = study.comparisons
    for one in (cbl, gate):
        assert one.t_test is not None
        assert one.num_comparisons == 2
        assert one.p_holm == pytest.approx(min(1.0, 2 * one.t_test.p))
    assert cbl in study.families["cbl"]
    (alone,) = findings_of([one for one in records if one.arm != "cbl-gate"]).comparisons
    assert alone.num_comparisons == 2  # the recipe names both
    kept = Path(__file__).parents[2] / "results" / "cifar10-2-seeds-3-epochs"
    first = findings_of(read_records(kept))
    assert not any(one.difference_shown for one in first.comparisons), "docs/log.md says so"


@pytest.mark.parametrize(
    ("arms", "sentence"),
    [
        (("standard",), "No finished run of another arm than standard: nothing to compare it with."),
        (("cbl", "cbl-gate"), "No finished run of the arm standard: nothing to compare with."),
    ],
)
def test_nothing_to_compare_is_said(tmp_path: Path, arms: tuple[str, ...], sentence: str) -> None:
    recipe = a_recipe(arms=arms)
    report = build_report(write_study(tmp_path, recipe, a_study(recipe)))
    assert sentence in Page(report.page.read_text("utf-8")).text
    assert sentence in report.table.read_text("utf-8")
    assert "paired_differences.png" not in [path.name for path in report.figures]
    no_loop = "No finished run with a loop" in report.page.read_text("utf-8")
    assert no_loop is ("cbl" not in arms)


def test_non_finite_losses_are_drawn_as_gaps_and_named(tmp_path: Path) -> None:
    recipe = a_recipe()
    records = a_study(recipe)
    bad = dataclasses.replace(records[2].epochs[-1], train_loss=math.nan, validation_loss=(math.nan,) * 3)
    records[2] = dataclasses.replace(records[2], epochs=(*records[2].epochs[:-1], bad))
    folder = write_study(tmp_path, recipe, records)
    read_back = next(record for record in read_records(folder) if record.name == records[2].name)
    assert math.isnan(read_back.epochs[-1].validation_loss[-1])
    build_report(folder)
    axes = draw(findings_of(records))["validation_loss"].axes[0]
    assert "cbl not finite" in axes.get_title(loc="left")
    means = [np.asarray(line.get_ydata()) for line in axes.lines if line.get_linewidth() > 2]
    assert [bool(np.isfinite(mean[-1])) for mean in means] == [True, False, True]


def test_figures_show_every_run_and_the_mean() -> None:
    recipe = a_recipe(seeds=5, epochs=4)
    records = a_study(recipe)
    figures = draw(findings_of(records))
    for name in ("validation_loss", "validation_accuracy"):
        lines = figures[name].axes[0].lines
        for arm in ARMS:
            of_arm = [line for line in lines if line.get_color() == colour(arm)]
            assert len(of_arm) == 5 + 1
            curves = np.array([line.get_ydata() for line in of_arm])
            np.testing.assert_allclose(curves[:5].mean(axis=0), curves[5])
    loop = next(line for line in figures["validation_loss"].axes[0].lines if line.get_color() == colour("cbl"))
    of_answer = [epoch.validation_loss[-1] for epoch in records[5].epochs]  # of y_T, not of step 0
    np.testing.assert_allclose(np.asarray(loop.get_ydata(), dtype=float), of_answer)
    accuracy = figures["validation_accuracy"].axes[0]
    first = [100 * epoch.validation_accuracy[-1] for epoch in records[0].epochs]
    np.testing.assert_allclose(np.asarray(accuracy.lines[0].get_ydata(), dtype=float), first)
    assert accuracy.get_ylabel() == "Validation accuracy (%)"
    differences = figures["paired_differences"].axes[0]
    shown = np.asarray(differences.collections[0].get_offsets(), dtype=float)[:, 0]
    np.testing.assert_allclose(shown, findings_of(records).comparisons[0].differences)


def test_convergence_shows_every_step_with_mean_and_band() -> None:
    recipe = a_recipe(seeds=3, epochs=4)
    records = a_study(recipe)
    figure = draw(findings_of(records))["convergence_accuracy"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["cbl, n = 3", "cbl-gate, n = 3"]
    of_arm = [record for record in records if record.arm == "cbl"]
    runs = 100 * np.array([[epoch.validation_accuracy for epoch in run.epochs] for run in of_arm])
    panel = figure.axes[0]
    for step in range(recipe.steps + 1):
        np.testing.assert_allclose(
            np.asarray(panel.lines[step].get_ydata(), dtype=float), runs[:, :, step].mean(axis=0)
        )
        edges = panel.collections[step].get_paths()[0].vertices[:, 1]
        assert (edges.min(), edges.max()) == pytest.approx((runs[:, :, step].min(), runs[:, :, step].max()))
    assert panel.lines[-1].get_label() == "standard"


def test_many_arms_stay_readable() -> None:
    findings = findings_of(a_study(a_recipe(MANY, seeds=2, epochs=2)))
    figures = draw(findings)
    learning = figures["validation_loss"].axes[0]
    named = list(learning.get_legend_handles_labels()[1])
    assert named == ["10 controls, means", "standard, n = 2", "cbl, n = 2", "cbl-gate, n = 2"]
    shown = [axes for axes in figures["convergence_loss"].axes if axes.axison]
    assert [axes.get_title(loc="left").split(",")[0] for axes in shown] == list(MANY)
    steps = [axes.get_title(loc="left").split(":")[0] for axes in figures["accuracy_by_step"].axes if axes.axison]
    assert steps == [arm for arm in MANY if arm not in ONE_STEP]
    page = Page(render(findings, figures, beyond(findings)))
    assert page.tags.count("details") == 2
    assert all(sentence in page.text for sentence in findings.verdicts)
    assert "It is told the labels: an upper bound, no competitor." in page.text


def test_a_study_of_the_released_pair_is_held_against_its_own_baseline() -> None:
    findings = findings_of(a_study(a_recipe(("as-released-standard", "as-released-cbl"), seeds=3)))
    assert findings.baseline == "as-released-standard"
    assert "than as-released-standard" in findings.verdicts[0]
    assert tables.differences(findings).header[0] == "Minus as-released-standard"
    assert "training time of as-released-standard" in findings.costs[0]


def test_arms_are_told_apart() -> None:
    assert len({colour(arm) for arm in ("standard", "cbl", "no-context", "wider-params", "cbl-gate")}) == 5
    assert len({(colour(arm), marker(arm)) for arm in ARM_NAMES}) == len(ARM_NAMES)
    assert all(colour(arm) not in (colour("standard"), colour("cbl")) for arm in ARM_NAMES[2:])
    assert colour("some-later-arm") == colour("some-later-arm")


def test_svg_ids_carry_the_figure_name() -> None:
    figure = draw(findings_of(a_study(a_recipe(seeds=1, epochs=1))))["validation_loss"]
    svg = as_svg(figure, "loss")
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert all(name.startswith("loss-") for name in re.findall(r'\bid="([^"]*)"', svg))


def test_terminal_table_is_plain_text() -> None:
    text = table(a_study(a_recipe(seeds=5)))
    lines = text.splitlines()
    assert "\x1b" not in text
    assert lines[1].split()[:3] == ["Model", "Seed", "0"]
    assert [line.split()[0] for line in lines[3:6]] == list(ARMS)
    assert len({len(line) for line in lines[3:6]}) == 1
    assert "after Holm's correction for 2 comparisons" in text
    assert overall(beyond(findings_of(a_study(a_recipe(seeds=5))))[0]) in lines
    assert text.endswith("the training time of standard.")


def test_label_speaks_of_the_paper_only_where_it_applies() -> None:
    full = findings_of(a_study(a_recipe(seeds=5, epochs=20)))
    assert full.label == "cifar10: 5 seeds, 20 epochs"
    digits = findings_of(a_study(a_recipe(seeds=1, epochs=1, name="demo")))
    assert digits.label == "demo: 1 seed, 1 epoch on digits (not the paper's data)"


def test_label_counts_seeds_by_arm() -> None:
    records = a_study(a_recipe(arms=("standard", "cbl"), seeds=5, epochs=20))
    without = [record for record in records if record.name not in ("cbl-seed1", "cbl-seed4")]
    expected = "cifar10: 3 to 5 seeds an arm, 20 epochs (the paper's protocol: 5 seeds, 20 epochs)"
    assert findings_of(without).label == expected


def test_differing_machines_are_all_named() -> None:
    records = a_study(a_recipe(arms=("standard",)))
    records[1] = dataclasses.replace(records[1], machine={**records[1].machine, "processor": "another"})
    rows = {row[0]: row[1] for row in tables.surroundings(findings_of(records)).rows}
    assert rows["processor"] == "some processor; another"
    assert rows["cores"] == "2"


def test_text_from_records_is_escaped() -> None:
    records = a_study(a_recipe(arms=("standard",)))
    records[0] = dataclasses.replace(records[0], machine={"processor": "<script>alert(1)</script>"})
    html = tables.surroundings(findings_of(records)).as_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_logarithmic_axes_have_plain_numbers() -> None:
    with styled():
        figure, axes = canvas()
        axes.plot([1, 2, 3], [1e-6, 1e-3, 1.0])
        log_scale(axes)
    as_png(figure)
    labels = {label.get_text() for label in axes.get_yticklabels(which="both")}
    assert {"1e-06", "0.001", "1"} <= labels
    assert not any("$" in label for label in labels)


def test_dollars_in_names_of_classes_are_no_formula(tmp_path: Path) -> None:
    classes = ("under_$10", "$10_to_$20", "over_$20")
    confusion = ((3000, 900, 100), (200, 2500, 800), (100, 100, 2300))
    for record in a_study(a_recipe(arms=("standard", "cbl"))):
        test = dataclasses.replace(record.test, confusion=(confusion,) * len(record.test.accuracy))
        write_record(tmp_path, dataclasses.replace(record, test=test, classes=classes))
    (tmp_path / "recipe.toml").write_text(a_recipe(arms=("standard", "cbl")).as_toml())
    assert "$10_to_$20" in build_report(tmp_path).page.read_text(encoding="utf-8")


def test_no_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finished run to report: run `torchcbl compare`"):
        build_report(write_study(tmp_path, a_recipe(), []))
    with pytest.raises(ValueError, match="no finished run to report"):
        table([])


def test_runs_of_two_recipes_are_refused(tmp_path: Path) -> None:
    recipe = a_recipe()
    records = [a_record(recipe, "standard", 0), a_record(a_recipe(epochs=5), "cbl", 0)]
    with pytest.raises(ValueError, match=r"record cbl-seed0 was made with another .*: epochs is 5 there, 3 here"):
        build_report(write_study(tmp_path, recipe, records))


def test_more_seeds_than_before_is_the_same_recipe() -> None:
    records = [a_record(a_recipe(seeds=1), "standard", 0), a_record(a_recipe(seeds=2), "standard", 1)]
    assert findings_of(records).recipe.seeds == 2


def test_two_records_of_one_run_are_refused() -> None:
    record = a_record(a_recipe(), "cbl", 0)
    with pytest.raises(ValueError, match="two records of the run cbl-seed0, expected one"):
        Findings(a_recipe(), (record, record))


def test_missing_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"recipe\.toml"):
        build_report(tmp_path)


def test_report_needs_no_torch() -> None:
    code = (
        "import sys, torchcbl.lab.report.page, torchcbl.lab.report.figures\n"
        "assert not {'torch', 'lightning'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("treatment", "baseline", "sentence"),
    [
        ({}, {}, "cbl and standard have no finished seed in common: no comparison possible."),
        ({0: 2.0}, {0: 1.0}, "in the only paired run: no test possible with one seed."),
        ({0: 1.0}, {0: 1.0}, "scored the same in the only paired run: no test possible with one seed."),
        ({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, "scored the same in all 2 paired runs: no difference shown."),
        (
            {0: 1.3, 1: 2.3},
            {0: 1.0, 1: 2.0},
            "0.30 points higher than standard in each of 2 paired runs: no test",
        ),
        (
            {0: 1.0, 1: 3.0},
            {0: 2.0, 1: 2.0},
            "on average (95% interval -12.71 to 12.71, 2 paired runs, p = 1)",
        ),
        ({0: 1.0, 1: 2.1}, {0: 9.0, 1: 9.9}, "7.90 points lower than standard on average"),
        ({0: 9.0, 1: 9.9}, {0: 1.0, 1: 2.1}, "p = 0.0081): a difference is shown."),
        ({0: 1.0, 1: 3.0, 2: 4.0}, {0: 2.0, 3: 1.0}, "Left out: seeds 1, 2, 3, finished in only one"),
        ({0: math.nan, 1: 3.0}, {0: 2.0, 1: 1.0}, "Left out: seed 0, with a score that is not finite."),
    ],
)
def test_verdict_says_what_the_data_carry(
    treatment: dict[int, float], baseline: dict[int, float], sentence: str
) -> None:
    assert sentence in verdict(compare(treatment, baseline, names=("cbl", "standard")))


def test_verdict_goes_by_the_corrected_p() -> None:
    scores = {
        "standard": {0: 0.0, 1: 0.0, 2: 0.0},
        "cbl": {0: 1.0, 1: 1.5, 2: 2.0},
        "cbl-gate": {0: 0.5, 1: -0.5, 2: 0.2},
    }
    alone = compare(scores["cbl"], scores["standard"])
    among = compare_all(scores, "standard")[0]
    assert verdict(alone).endswith("p = 0.035): a difference is shown.")
    assert verdict(among).endswith("p = 0.07 after Holm's correction for 2 comparisons): no difference shown.")


@pytest.mark.parametrize(("p", "text"), [(0.00045, "= 0.00045"), (0.01249, "= 0.012"), (1.0, "= 1")])
def test_p_is_written_with_two_digits(p: float, text: str) -> None:
    assert format_p(p) == text


def test_arms_that_are_told_the_labels_stand_outside_the_family_and_missing_ones_inside() -> None:
    noise = (0.1, -0.1, 0.05, 0.0, -0.05)
    scores = {
        arm: {seed: 78.0 + gain + (1 + gain) * noise[seed] for seed in range(5)}
        for arm, gain in (("standard", 0.0), ("cbl", 0.5), ("label-context", 9.0))
    }
    cbl, told = compare_arms(scores, "standard", ("standard", "cbl", "no-context", "untied", "label-context"))
    assert (cbl.treatment, cbl.num_comparisons) == ("cbl", 3)
    assert (told.treatment, told.num_comparisons) == ("label-context", 1)
    (alone,) = compare_all({"standard": scores["standard"], "cbl": scores["cbl"]}, "standard")
    assert alone.p_holm is not None
    assert cbl.p_holm == pytest.approx(3 * alone.p_holm)
    assert compare_arms({"cbl": scores["cbl"]}, "standard", ("standard", "cbl")) == []
