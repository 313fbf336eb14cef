"""The curves of the report: bounded, true to the numbers, and placed where the axes say."""

from grpo.report import curves as charts


def test_a_long_run_has_no_more_points_and_no_spike_is_lost() -> None:
    lines = [{"step": i, "kl": 0.1 + (i == 1_234)} for i in range(1, 20_001)]
    (chart,) = charts.curves(lines, "MRI")
    drawn = chart["lines"][0]["faint"].split()

    assert len(drawn) <= charts.MOST_POINTS
    assert min(float(point.split(",")[1]) for point in drawn) < charts.TOP + 40


def test_a_short_line_beside_a_long_one_has_a_mark() -> None:
    long, found = [(float(i), 0.5) for i in range(1, 2_001)], {}
    for n in (1, 10):
        for lines in ([("a", long), ("b", long[:n])], [("a", long[:n]), ("b", long)]):
            chart = charts.drawn("Reward", "", lines)
            marks = [len(line["marks"]) for line in chart["lines"]]
            found[n, len(lines[0][1])] = marks
    assert {case: marks for case, marks in found.items() if not all(marks)} == {}


def test_points_lie_where_the_axes_say() -> None:
    (chart,) = charts.curves(
        [{"step": 1, "kl": 0.0}, {"step": 3, "kl": 2.0}, {"step": 5, "kl": 1}], "MRI"
    )
    at = {label: y for y, label in chart["y_ticks"]}
    at |= {f"x{label}": x for x, label in chart["x_ticks"]}

    assert chart["lines"][0]["path"] == (
        f"{charts.LEFT},{at['0']:g} {at['x3']:g},{at['2']:g} {charts.RIGHT},{at['1']:g}"
    )


def test_a_step_without_a_number_is_no_point() -> None:
    (chart,) = charts.curves([{"step": 1, "kl": 1.0}, {"step": 2, "kl": None}, {"step": 3}], "MRI")

    assert chart["lines"][0]["points"] == [(1, 1.0)]
    assert len(chart["lines"][0]["marks"]) == 1
