"""A comparison in plain words; the sentence is allowed to say that nothing was shown."""

from __future__ import annotations

from torchcbl.lab.report.progress import lead
from torchcbl.lab.statistics import SIGNIFICANCE, Comparison


def verdict(comparison: Comparison, planned: int = 0) -> str:
    """Say the outcome of a comparison in one plain sentence, and which runs it had to leave out.

    A difference counts as shown where the p-value, corrected for the number of comparisons, is below 0.05.
    "No difference shown" does not mean that there is none: the interval says what is left possible.

    Args:
        comparison: As `compare` or `compare_all` returns it, in points.
        planned: Seeds of the study; what fewer of them show is called a lead.

    Example:
        >>> from torchcbl.lab.statistics import compare
        >>> baseline = {0: 80.2, 1: 80.4, 2: 80.5}
        >>> print(verdict(compare({0: 80.6, 1: 81.3, 2: 80.1}, baseline, names=("cbl", "standard"))))
        cbl scored 0.30 points higher than standard on average (95% interval -1.33 to 1.93, 3 paired runs,
        p = 0.51): no difference shown.
        >>> print(verdict(compare({0: 80.6}, {0: 80.2}, names=("cbl", "standard"))))
        cbl scored 0.40 points higher than standard in the only paired run: no test possible with one seed.
    """
    return _outcome(comparison, planned) + _left_out(comparison)


def shown_as_lead(comparison: Comparison, planned: int) -> str:
    """Say that a difference shown by fewer seeds than were planned is a lead; nothing for any other."""
    return lead(comparison.n + len(comparison.not_finite), planned) if comparison.difference_shown else ""


def format_p(p: float) -> str:
    """Write a p-value: two significant digits, never "0", and more where it would be rounded to 0.05.

    Example:
        >>> format_p(0.0312), format_p(0.62), format_p(1e-7), format_p(0.0497), format_p(0.05003)
        ('= 0.031', '= 0.62', '< 0.0001', '= 0.0497', '= 0.05003')
    """
    if p < 0.0001:
        return "< 0.0001"
    digits = next(digits for digits in range(2, 18) if p == SIGNIFICANCE or float(f"{p:.{digits}g}") != SIGNIFICANCE)
    return f"= {float(f'{p:.{digits}g}'):.{max(digits, 4)}g}"


def to_digits(value: float, digits: int, threshold: float) -> str:
    """Write a number with so many digits after the point, and more where it would be rounded to the threshold.

    Example:
        >>> to_digits(0.942, 2, threshold=0.95), to_digits(0.947, 2, threshold=0.95)
        ('0.94', '0.947')
    """
    while digits < 17 and value != threshold and round(value, digits) == threshold:
        digits += 1
    return f"{value:.{digits}f}"


def _outcome(comparison: Comparison, planned: int) -> str:
    treatment, baseline, n = comparison.treatment, comparison.baseline, comparison.n
    if comparison.mean is None:
        return f"{treatment} and {baseline} have no finished seed in common: no comparison possible."
    if not any(comparison.differences):
        runs = "the only paired run: no test possible with one seed" if n == 1 else _all_runs(n)
        return f"{treatment} and {baseline} scored the same in {runs}."
    direction = "higher" if comparison.mean > 0 else "lower"
    scored = f"{treatment} scored {abs(comparison.mean):.2f} points {direction} than {baseline}"
    if abs(comparison.mean) < 0.005:
        scored = f"{treatment} scored within 0.01 points of {baseline}"
    if n == 1:
        return f"{scored} in the only paired run: no test possible with one seed."
    if comparison.p_holm is None:
        return f"{scored} in each of {n} paired runs: no test possible without spread."
    return (
        f"{scored} on average (95% interval {comparison.t_interval}, {n} paired runs, "
        f"p {format_p(comparison.p_holm)}{_correction(comparison)}): {_shown(comparison, planned)}."
    )


def _shown(comparison: Comparison, planned: int) -> str:
    if not comparison.difference_shown:
        return "no difference shown"
    return f"a difference is shown{shown_as_lead(comparison, planned)}"


def _all_runs(n: int) -> str:
    return f"all {n} paired runs: no difference shown"


def _correction(comparison: Comparison) -> str:
    count = comparison.num_comparisons
    return f" after Holm's correction for {count} comparisons" if count > 1 else ""


def _left_out(comparison: Comparison) -> str:
    text = ""
    if comparison.unpaired:
        text += f" Left out: {_seeds(comparison.unpaired)}, finished in only one of the two arms."
    if comparison.not_finite:
        text += f" Left out: {_seeds(comparison.not_finite)}, with a score that is not finite."
    return text


def _seeds(seeds: tuple[int, ...]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
