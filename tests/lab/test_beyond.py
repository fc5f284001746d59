"""What the loop adds beyond each control: the family, the numbers, and words that claim no more than these.

The scores are made up: only the shape of the records is real.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from torchcbl.lab.arms import find_arm
from torchcbl.lab.measures.base import About
from torchcbl.lab.measures.calibration import reliability, score
from torchcbl.lab.measures.clean import Changes, Clean, pack
from torchcbl.lab.measures.store import result_path, write_result
from torchcbl.lab.recipe import load_recipe
from torchcbl.lab.records import EpochRecord, Record, TestRecord, write_record
from torchcbl.lab.report.beyond import Beyond, Control, beyond, bound, draw_beyond, markdown, overall, sentence, table
from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.forest import Line, draw_forest
from torchcbl.lab.report.steps import draw_by_step
from torchcbl.lab.statistics import Interval, compare, compare_all, plan, practical, two_level_interval

Right = NDArray[np.bool_]
Scores = Mapping[str, Sequence[float]]
SEEDS = 5
FIRST = 0.4  # how far step 0 of a loop stays below its last, in points
GAINED = (1.1, 0.9, 1.2, 1.0, 1.05)
EQUAL = (0.05, -0.1, 0.1, 0.0, -0.05)
OPEN = (1.2, -0.6, 0.4, 0.9, -0.3)
BASE = (78.0, 78.3, 77.8, 78.1, 78.2)


def plus(differences: Sequence[float]) -> list[float]:
    return [base + difference for base, difference in zip(BASE, differences, strict=True)]


def a_record(recipe_arms: tuple[str, ...], arm: str, seed: int, score: float, images: int = 10_000) -> Record:
    recipe = dataclasses.replace(load_recipe("cifar10"), arms=recipe_arms, seeds=SEEDS, epochs=1)
    steps = recipe.steps + 1 if "cbl" in arm.split("-") else 1
    accuracy = tuple(round((score - FIRST * (steps - 1 - step)) / 100, 6) for step in range(steps))
    loss = (1.0,) * steps
    return Record(
        schema=1,
        study=recipe.name,
        arm=arm,
        seed=seed,
        recipe=recipe.as_dict(),
        versions={"torchcbl": "0.1.0"},
        machine={"device": "cpu"},
        parameters={"backbone": 1, "added": 0},
        flops={"first": 1.0, "step": 1.0, "inference": 3.0},
        epochs=(EpochRecord(1, 1e-3, 1.0, loss, accuracy, 1.0),),
        test=TestRecord(images, loss, accuracy),
        seconds={"training": 1.0, "total": 1.0},
        finished="2026-01-01T00:00:00+00:00",
    )


def findings(scores: Scores, planned: Sequence[str] = (), folder: Path | None = None, images: int = 10_000) -> Findings:
    arms = (*scores, *planned)
    records = tuple(
        a_record(arms, arm, seed, score, images) for arm in scores for seed, score in enumerate(scores[arm])
    )
    recipe = dataclasses.replace(load_recipe("cifar10"), arms=arms, seeds=SEEDS, epochs=1)
    return Findings(recipe, records, folder)


def a_control(differences: Sequence[float], name: str = "no-context", others: int = 0, **changes: object) -> Control:
    """A control to which the loop has these differences, one of `others` + 1."""
    zeros = dict.fromkeys(range(len(differences)), 0.0)
    scores = {"cbl": dict(enumerate(differences)), name: zeros}
    comparison = compare_all(scores, name, planned=others + 1)[0]
    control = Control(name, comparison, practical=practical(differences), plan=plan(differences))
    return dataclasses.replace(control, **changes)  # type: ignore[arg-type]


def the(scores: Scores, **options: object) -> Beyond:
    (found,) = beyond(findings(scores, **options))  # type: ignore[arg-type]
    return found


def test_rows_are_the_controls_by_difference() -> None:
    found = the({"standard": BASE, "cbl": plus(GAINED), "no-context": plus(EQUAL), "cbl-gate": plus(GAINED)})
    assert found.treatment == "cbl"  # the other loop is no control
    assert [control.name for control in found.controls] == ["no-context", "standard", "loop-free"]
    means = [control.comparison.mean for control in found.controls]
    assert means == sorted(means, key=lambda mean: -(mean or 0))
    assert means[1] == pytest.approx(np.mean(GAINED))
    assert found.controls[0].isolates == find_arm("no-context").isolates
    assert found.controls[0].holds_equal == find_arm("no-context").holds_equal


def test_own_first_step_is_read_off_the_same_runs() -> None:
    for arms in (("standard", "cbl"), ("standard", "cbl", "loop-free")):
        scores = {"standard": BASE, "cbl": plus(GAINED)}
        found = the(scores, planned=arms[2:])
        free = found.find("loop-free")
        assert free is not None
        assert free.comparison.differences == pytest.approx([2 * FIRST] * SEEDS)
        assert len(found.controls) == found.num_comparisons == 2  # once, also where the recipe names it
        assert free.isolates == find_arm("loop-free").isolates


def test_holm_counts_the_controls_and_those_to_come_but_no_upper_bound() -> None:
    scores = {"standard": BASE, "cbl": plus(GAINED), "label-context": plus([9.0, 9.5, 9.2, 9.1, 9.3])}
    found = the(scores, planned=("no-context", "wider-params"))
    assert found.num_comparisons == 4  # standard, loop-free, and the two that are not finished
    standard = found.find("standard")
    assert standard is not None
    assert standard.comparison.t_test is not None
    assert standard.comparison.p_holm == pytest.approx(4 * standard.comparison.t_test.p)
    assert standard.plan_holm == plan(standard.comparison.differences, alpha=0.05 / 4)
    assert [control.name for control in found.bounds] == ["label-context"]
    assert found.find("label-context") is None
    assert "label-context (upper bound, told the labels): the loop lies 8.17 points below it" in bound(found.bounds[0])
    assert [control.name for control in found.controls[-2:]] == ["no-context", "wider-params"]
    assert "cannot say, no seed is finished in both" in sentence(found.controls[-1])


def test_released_loops_are_held_against_networks_that_differ_by_one_thing_they_name() -> None:
    scores = {
        "as-released-standard": BASE,
        "as-released-cbl": plus(GAINED),
        "as-released-standard-no-dropout": plus(EQUAL),
        "as-released-cbl-dropout": plus(GAINED),
    }
    found = {one.treatment: {control.name: control for control in one.controls} for one in beyond(findings(scores))}
    loop, with_dropout = found["as-released-cbl"], found["as-released-cbl-dropout"]
    assert set(loop) == {"as-released-standard", "as-released-standard-no-dropout"}
    assert loop["as-released-standard"].isolates == "the released comparison: no loop, but dropout"
    assert loop["as-released-standard-no-dropout"].holds_equal.endswith("dropout (none) with as-released-cbl")
    assert set(with_dropout) == {"as-released-standard"}
    assert with_dropout["as-released-standard"].holds_equal.endswith("dropout (0.5) with as-released-standard")


def test_released_loops_are_treatments_of_their_own_network() -> None:
    scores = {
        "standard": BASE,
        "cbl": plus(GAINED),
        "as-released-standard": BASE,
        "as-released-cbl": plus(EQUAL),
        "as-released-cbl-dropout": plus(GAINED),
    }
    found = {one.treatment: [control.name for control in one.controls] for one in beyond(findings(scores))}
    assert list(found) == ["cbl", "as-released-cbl", "as-released-cbl-dropout"]
    assert set(found["cbl"]) == {"standard", "loop-free"}
    assert set(found["as-released-cbl"]) == {"as-released-standard"}
    assert "as-released-cbl gains" not in overall(beyond(findings(scores))[1])


def test_another_loop_is_the_treatment_where_there_is_no_cbl() -> None:
    assert the({"standard": BASE, "cbl-gate": plus(GAINED)}).treatment == "cbl-gate"
    assert beyond(findings({"standard": BASE, "wider-params": plus(EQUAL)})) == ()


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        (GAINED, "adds 1.05 points (95% 0.91 to 1.19, n = 5, p < 0.0001): shown to be better, by more than 0.5 points"),
        ([-d for d in GAINED], "Against no-context, the loop loses 1.05 points (95% -1.19 to -0.91"),
        ([-d for d in GAINED], "shown to be worse, by more than 0.5 points with probability > 0.999."),
        (
            [d / 2 for d in GAINED],
            "shown to be better; whether by more than 0.5 points is open (by more than 0.5 points",
        ),
        (
            [d / 5 for d in GAINED],
            "shown to be better, yet practically equal: within 0.5 points with probability > 0.999.",
        ),
        (EQUAL, "no difference shown; practically equal, within 0.5 points with probability > 0.999."),
        (
            OPEN,
            "no difference shown, and neither sign ruled out; better by more than 0.5 points with probability 0.31,",
        ),
        (OPEN, "to see 0.5 points needs 21 seeds, 47 to be safe."),
        ([0.4], "adds 0.40 points in the only paired run: cannot say, a test needs at least 2 paired seeds."),
        ([0.4, 0.4, 0.4], "adds 0.40 points in each of 3 paired runs: cannot say, no test without spread."),
        ([0.4, 0.6], "n = 2, p = 0.13): no difference shown, and neither sign ruled out"),
    ],
)
def test_each_case_has_its_verdict(differences: Sequence[float], said: str) -> None:
    assert said in sentence(a_control(differences))


def test_verdict_goes_by_the_corrected_p() -> None:
    differences = (0.9, 0.3, 0.8, 0.2, 0.6)
    assert "shown to be better" in sentence(a_control(differences))
    among = sentence(a_control(differences, others=11))
    assert "after Holm for 12" in among
    assert "no difference shown after correction; a loss is all but ruled out; better by more than" in among
    worse = sentence(a_control([-difference for difference in differences], others=11))
    assert "no difference shown after correction; a gain is all but ruled out; better by more than" in worse


def test_what_holds_on_these_images_only_is_said() -> None:
    wide = compare({0: 0.5, 1: 1.5}, {0: 0.0, 1: 0.0}).t_interval
    open_ = "this holds for these test data, on new ones sign and size stay open (-5.35 to 7.35)"
    assert open_ in sentence(a_control(GAINED, two_level=wide))
    assert "open" not in sentence(a_control(GAINED, two_level=Interval(0.6, 1.5)))
    inside = sentence(a_control(GAINED, two_level=Interval(0.37, 1.64)))
    assert inside.endswith("> 0.999; this holds for these test data, on new ones the size stays open (0.37 to 1.64).")
    lost = sentence(a_control([-d for d in GAINED], two_level=Interval(-1.64, -0.37)))
    assert lost.endswith("on new ones the size stays open (-1.64 to -0.37).")


def test_overall_says_what_holds_on_these_images_only() -> None:
    small = [d / 4 for d in GAINED]
    found = the({"standard": BASE, "no-context": BASE, "cbl": plus(small)})
    wide = Interval(-0.35, 0.95)
    controls = tuple(dataclasses.replace(one, two_level=wide) for one in found.controls if one.name != "loop-free")
    text = overall(dataclasses.replace(found, controls=controls))
    aside = "practically equal within 0.5 on these test data, sign open on new ones, -0.35 to 0.95"
    assert text.startswith(f"The loop gains 0.26 points over standard ({aside}).")
    assert f"no-context (+0.26 points, {aside})" in text
    worse = the({"standard": plus((0.9, 0.3, 0.8, 0.2, 0.6)), "cbl": BASE})
    (plain,) = (one for one in worse.controls if one.name == "standard")
    comparison = dataclasses.replace(plain.comparison, p_holm=0.2)
    plain = dataclasses.replace(plain, comparison=comparison, two_level=Interval(-1.4, 0.2))
    text = overall(dataclasses.replace(worse, controls=(plain,)))
    assert "a gain is all but ruled out on these test data, and open on new ones (95% -1.40 to 0.20)." in text
    assert "; this holds for these test data, on new ones the sign stays open (-1.40 to 0.20)." in sentence(plain)


def test_what_holds_on_new_images_too_is_not_called_open() -> None:
    differences = (0.2, 0.05, 0.18, 0.1, 0.02)
    control = a_control(differences, others=11, two_level=Interval(-0.1, 0.34))  # equal, and no difference shown
    assert "practically equal" in sentence(control)
    assert "open" not in sentence(control)
    shown = the({"standard": BASE, "cbl": plus([d / 4 for d in GAINED])})
    narrow = tuple(dataclasses.replace(one, two_level=Interval(-0.05, 0.35)) for one in shown.controls)
    text = overall(dataclasses.replace(shown, controls=narrow))
    assert "over standard (practically equal within 0.5, sign open on new ones, -0.05 to 0.35)." in text


@pytest.mark.parametrize(
    ("arm", "weights", "control"),
    [
        ("cbl", "", True),
        ("cbl", "linear", True),
        ("cbl", "last", False),
        ("cbl-gate", "", False),
        ("as-released-cbl", "", False),
    ],
)
def test_step_zero_is_a_control_only_where_it_was_trained(arm: str, weights: str, control: bool) -> None:
    plain = "as-released-standard" if arm.startswith("as-released") else "standard"
    made = findings({plain: BASE, arm: plus(GAINED)})
    recipe = dataclasses.replace(made.recipe, weights=weights)
    records = tuple(dataclasses.replace(one, recipe=recipe.as_dict()) for one in made.records)
    (found,) = beyond(Findings(recipe, records))
    names = [one.name for one in found.controls if one.name != plain]
    assert bool(names) is control
    assert found.num_comparisons == 1 + control
    headline = draw_by_step(Findings(recipe, records)).axes[0].get_title(loc="left")
    assert ("A rising line says yes" in headline) is control
    said = "Its own step 0 is no control: it was trained on later answers alone."
    assert overall(found).endswith(said) is not control


def test_a_loop_in_place_of_cbl_is_held_against_the_plain_network_alone() -> None:
    # the others' adapter, loss and size are those of `cbl`
    scores = {"standard": BASE, "cbl-gate": plus(GAINED), "no-context": BASE, "wider-params": BASE}
    assert [control.name for control in the(scores).controls] == ["standard"]
    with_cbl = {**scores, "cbl": plus(GAINED)}
    assert {control.name for control in the(with_cbl).controls} == {
        "standard",
        "no-context",
        "wider-params",
        "loop-free",
    }


def test_equal_differences_that_will_never_have_a_test_are_not_to_come() -> None:
    text = overall(the({"standard": BASE, "no-context": BASE, "cbl": plus([0.5] * SEEDS)}))
    assert "No test is possible against loop-free (+0.80 points), no-context (+0.50 points), standard" in text
    assert "No test is possible yet against ensemble." in overall(
        the({"standard": BASE, "cbl": plus(GAINED)}, planned=("ensemble",))
    )


@pytest.mark.parametrize(("p", "written"), [(0.0497, "0.0497"), (0.0503, "0.0503"), (0.05, "0.05"), (0.049, "0.049")])
def test_a_p_value_is_not_rounded_onto_the_level_it_is_judged_by(p: float, written: str) -> None:
    comparison = dataclasses.replace(a_control(OPEN).comparison, p_holm=p)
    assert f"p = {written})" in sentence(dataclasses.replace(a_control(OPEN), comparison=comparison))


def test_a_probability_is_not_rounded_onto_the_level_it_is_judged_by() -> None:
    control = a_control([d / 2 for d in GAINED])
    assert control.practical is not None
    near = dataclasses.replace(control.practical, better=0.947, equal=0.053, worse=0.0)
    control = dataclasses.replace(control, practical=near)
    assert "is open (by more than 0.5 points with probability 0.947)" in sentence(control)
    assert "0.00 / 0.05 / 0.947" in table(Beyond("cbl", (control,), (), 1)).as_markdown()


def test_practically_equal_on_these_images_only_is_said() -> None:
    wide, narrow = Interval(-0.44, 0.63), Interval(-0.3, 0.4)
    equal = "practically equal, within 0.5 points with probability > 0.999"
    open_ = "; this holds for these test data, on new ones the size stays open (-0.44 to 0.63)."
    assert sentence(a_control(EQUAL, two_level=wide)).endswith(equal + open_)
    assert sentence(a_control(EQUAL, two_level=narrow)).endswith(f"{equal}.")
    better = sentence(a_control([d / 5 for d in GAINED], two_level=wide))
    assert better.endswith("; this holds for these test data, on new ones sign and size stay open (-0.44 to 0.63).")
    found = the({"standard": BASE, "no-context": BASE, "cbl": plus(EQUAL)})
    for interval, aside, gain in (
        (wide, " on these test data", " on these test data, and open on new ones (95% -0.44 to 0.63)"),
        (narrow, "", ""),
    ):
        controls = tuple(dataclasses.replace(one, two_level=interval) for one in found.controls)
        text = overall(dataclasses.replace(found, controls=controls))
        assert f"no-context (+0.00 points, practically equal within 0.5{aside})" in text
        assert f"over standard (+0.00 points): any gain is within 0.5 points{gain}." in text


def test_words_never_claim_what_no_test_shows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        differences = rng.normal(rng.normal(0, 0.6), rng.uniform(0.05, 1.0), rng.integers(1, 8)).round(2).tolist()
        control = a_control(differences, others=int(rng.integers(0, 12)))
        text, comparison = sentence(control), control.comparison
        assert ("shown to be" in text) is comparison.difference_shown
        assert ("practically equal" in text) is (control.practical is not None and control.practical.equal >= 0.95)
        better = comparison.difference_shown and (comparison.mean or 0) > 0
        assert ("shown to be better" in text) is better
        assert ("cannot say" in text) is (comparison.p_holm is None)


def test_overall_names_what_may_explain_a_gain() -> None:
    text = overall(
        the(
            {
                "standard": BASE,
                "cbl": plus(GAINED),
                "no-context": plus([g - e for g, e in zip(GAINED, EQUAL, strict=True)]),
            }
        )
    )
    assert text.startswith("The loop gains 1.05 points over standard.")
    assert "It is not shown to beat no-context (+0.00 points, practically equal within 0.5)." in text
    assert "What no-context has in common with the loop may explain the gain." in text


def test_overall_of_a_loop_that_beats_all_and_of_one_that_beats_none() -> None:
    lifted = {"standard": BASE, "wider-params": plus(EQUAL), "cbl": plus(GAINED)}
    found = the(lifted)
    kept = dataclasses.replace(found, controls=tuple(one for one in found.controls if one.name != "loop-free"))
    assert overall(kept).endswith("It is shown to beat every control it was held against: wider-params (+1.05 points).")
    none = overall(the({"standard": BASE, "wider-params": plus(EQUAL), "cbl": plus([-d for d in EQUAL])}))
    equal = "over standard (+0.00 points): any gain is within 0.5 points."
    assert f"The loop is not shown to gain anything {equal}" in none
    assert "may explain" not in none
    worse = overall(the({"standard": plus(GAINED), "ensemble": plus(GAINED), "cbl": BASE}))
    assert "The loop scores 1.05 points below standard: there is no gain to explain." in worse
    assert "shown to be worse than ensemble" in worse


def test_overall_beats_every_control_only_where_it_beats_the_plain_network_too() -> None:
    plain = [score - open_ for score, open_ in zip(plus(GAINED), OPEN, strict=True)]
    found = the({"standard": plain, "wider-params": BASE, "cbl": plus(GAINED)})
    kept = tuple(one for one in found.controls if one.name != "loop-free")
    text = overall(dataclasses.replace(found, controls=kept))
    assert "The loop is not shown to gain anything over standard (+0.32 points)" in text
    assert text.endswith("It is shown to beat wider-params (+1.05 points).")


def test_overall_says_what_an_interval_on_one_side_leaves() -> None:
    many = ("no-context", "frozen-context", "shuffled-context", "untied", "ensemble", "wider-params", "wider-flops")
    for differences, said in (
        ((0.9, 0.3, 0.8, 0.2, 0.6), ", after correction, to gain over standard (+0.56 points, 95% 0.18 to 0.94). "),
        ((0.38, 0.2, 0.35, 0.36, 0.1), "95% 0.13 to 0.43): any gain is within 0.5 points. "),
        ((-0.9, -0.3, -0.8, -0.2, -0.6), " over standard (-0.56 points): a gain is all but ruled out. "),
    ):
        text = overall(the({"standard": BASE, "cbl": plus(differences)}, planned=many))
        assert text.startswith("The loop is not shown")
        assert said in text
        assert "no gain to explain" not in text


def test_overall_rules_no_gain_out_that_few_runs_cannot_show() -> None:
    few = overall(the({"standard": BASE[:2], "cbl": plus((1.5, 0.5, 0, 0, 0))[:2]}))
    assert few.startswith(
        "The loop is not shown to gain anything over standard (+1.00 points): a gain is not ruled out either "
        "(95% -5.35 to 7.35)."
    )


def test_overall_before_there_is_a_test() -> None:
    text = overall(the({"standard": BASE[:1], "cbl": plus(GAINED)[:1]}))
    assert text.startswith("The loop: whether there is a gain over the plain network has not been tested.")
    assert "No test is possible yet against" in text


def test_what_fewer_seeds_show_than_were_planned_is_called_a_lead() -> None:
    few, all_of_them = (the({"standard": BASE[:n], "cbl": plus(GAINED)[:n]}) for n in (3, SEEDS))
    standard = few.find("standard")
    assert standard is not None
    assert standard.comparison.difference_shown
    assert sentence(standard).endswith("; at 3 of 5 seeds it is a lead.")
    assert overall(few).endswith("What is shown is a lead: 5 seeds are planned.")
    assert markdown([few]).startswith("Partial: 6 of 10 runs finished, and its tests are not corrected for looking")
    figure = draw_beyond(few)
    assert figure is not None
    assert "controls (leads: seeds are to come)" in figure._suptitle.get_text()  # type: ignore[attr-defined]
    assert "lead" not in markdown([all_of_them])
    assert markdown([all_of_them]).startswith("The loop gains 1.05 points over standard.")


def answers(rng: np.random.Generator, score: float, images: int, steps: int) -> Right:
    return np.array([rng.permutation(images) < round(images * score / 100) for _ in range(steps)])


def measure(folder: Path, record: Record, right: Right) -> None:
    """Leave a run's record, and the measure of a network that had these samples right, (T + 1, N)."""
    labels = torch.arange(right.shape[1]) % 10
    logits = 5 * functional.one_hot((labels + torch.from_numpy(~right)) % 10, 10).float()
    write_record(folder, record)
    about = About("clean", record.arm, record.seed, record.finished, right.shape[1], {}, {}, {}, 1.0)
    found = Clean(
        about=about,
        scores=score(logits, labels),
        brier=(0.0,) * len(right),
        bins=tuple(reliability(step, labels) for step in logits),
        right=pack(torch.from_numpy(right)),
        flops_first=1.0,
        flops_step=1.0,
        exits=(),
        timings=(),
        changes=Changes((), (), (), ()),
    )
    write_result(folder, found)


def test_answers_to_every_image_give_the_second_interval(tmp_path: Path) -> None:
    scores = {"standard": BASE, "cbl": plus(GAINED), "no-context": plus(EQUAL)}
    study, rng, right = findings(scores, folder=tmp_path, images=500), np.random.default_rng(0), {}
    for record in study.records:
        if record.arm != "no-context":
            right[record.name] = answers(rng, 100 * record.test.accuracy[-1], 500, len(record.test.accuracy))
            measure(tmp_path, record, right[record.name])
    (found,) = beyond(study)
    standard, free, never = (found.find(name) for name in ("standard", "loop-free", "no-context"))
    assert standard is not None
    assert free is not None
    assert never is not None
    loop, plain = (np.stack([right[f"{arm}-seed{seed}"] for seed in range(SEEDS)]) for arm in ("cbl", "standard"))
    assert standard.two_level == two_level_interval(loop[:, -1], plain[:, -1])
    assert free.two_level == two_level_interval(loop[:, -1], loop[:, 0])
    assert never.two_level is None
    assert str(standard.two_level) in markdown([found])
    result_path(tmp_path, "clean", "standard-seed3").unlink()  # an interval over four seeds beside a mean over five
    part = beyond(study)[0].find("standard")
    assert part is not None
    assert part.two_level is None


def test_answers_to_other_images_are_not_used(tmp_path: Path) -> None:
    study = findings({"standard": BASE, "cbl": plus(GAINED)}, folder=tmp_path, images=500)
    for record in study.records:
        measure(tmp_path, record, np.ones((len(record.test.accuracy), 400), dtype=bool))
    assert all(control.two_level is None for control in beyond(study)[0].controls)


def test_a_single_pair_has_mcnemars_test(tmp_path: Path) -> None:
    study = findings({"standard": BASE[:1], "cbl": BASE[:1]}, folder=tmp_path, images=500)
    few, more = np.arange(500) < 300, np.arange(500) < 340
    for record in study.records:
        measure(tmp_path, record, few[None] if record.arm == "standard" else np.stack([few, few, more]))
    standard = beyond(study)[0].find("standard")
    assert standard is not None
    assert standard.mcnemar is not None
    assert (standard.mcnemar.only_treatment, standard.mcnemar.only_baseline) == (40, 0)
    assert "on data like these the two networks differ (McNemar p < 0.0001)" in sentence(standard)


def test_table_has_a_row_per_control_and_names_bounds() -> None:
    scores = {"standard": BASE, "cbl": plus(GAINED), "no-context": plus(EQUAL), "label-context": plus([9, 8, 9, 8, 9])}
    found = the(scores)
    made = table(found)
    assert [row[0] for row in made.rows] == ["no-context", "standard", "loop-free", "label-context (bound)"]
    assert {len(row) for row in made.rows} == {len(made.header)}
    cells = dict(zip(made.header, made.rows[1], strict=True))
    control = found.find("standard")
    assert control is not None
    assert control.practical is not None
    assert control.plan is not None
    assert cells["Mean"] == "+1.05"
    assert cells["n"] == "5"
    assert cells["P(worse / equal / better)"] == "0.00 / 0.00 / 1.00"
    assert cells["Seeds for 0.5 points (safe)"] == f"{control.plan.seeds} ({control.plan.seeds_cautious})"


def test_markdown_holds_table_sentences_and_what_controls_are() -> None:
    study = findings({"standard": BASE, "cbl": plus(GAINED), "no-context": plus(EQUAL)})
    text = markdown(study)
    (found,) = beyond(study)
    assert text.startswith(overall(found))
    for control in found.controls:
        assert f"- {sentence(control)}\n" in text
        assert f"| {control.name} | {control.isolates} | {control.holds_equal} |" in text
    assert markdown(findings({"standard": BASE})) == ""


def test_forest_plot_shows_every_pair_in_the_tables_order() -> None:
    found = the({"standard": BASE, "cbl": plus(GAINED), "no-context": plus(OPEN)}, planned=("untied",))
    figure = draw_beyond(found)
    assert figure is not None
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [control.name for control in found.controls if control.comparison.n]
    shown = np.asarray(axes.collections[0].get_offsets(), dtype=float)[:, 0]
    np.testing.assert_allclose(shown, found.controls[0].comparison.differences)
    assert figure.get_suptitle().startswith("The loop is shown to beat 1 of 2 controls")
    assert draw_beyond(the({"cbl": plus(GAINED)[:1]}, planned=("standard",))) is not None  # its own step 0 is there


def test_what_lies_far_out_does_not_flatten_the_rest() -> None:
    lines = [Line("near", "standard", [0.3, 0.5], None), Line("also", "cbl", [0.1, 0.2], None)]
    figure = draw_forest([*lines, Line("far", "loop-free", [60.0, 62.0], None)], "title", "points", rope=0.5)
    axes = figure.axes[0]
    assert axes.get_xlim()[1] < 5
    assert [text.get_text() for text in axes.texts] == ["+61.0 →"]
    assert axes.get_xlim()[0] < -0.5 < 0.5 < axes.get_xlim()[1]
