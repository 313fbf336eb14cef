"""Intervals and tests against hand-worked and published values, brute force and scipy."""

import itertools
import math
import random

import pytest

from rewards.evaluation.statistics import (
    bootstrap_by,
    holm,
    majority,
    mcnemar,
    paired_interval,
    pass_at_k,
    poisson_binomial_tail,
    student_p,
    students_t,
    wilson,
)


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[list[int], list[int]]:
    """Answers before and after with these counts."""
    before = [1] * both + [0] * gained + [1] * lost + [0] * neither
    return before, [1] * both + [1] * gained + [0] * lost + [0] * neither


def test_wilson_by_hand():
    # z = 2: (1 + 2) / 8 -+ 2 / 8 * sqrt(1 * 3 / 4 + 1)
    half = 0.25 * math.sqrt(1.75)
    assert wilson(1, 4, z=2) == pytest.approx((0.375 - half, 0.375 + half), abs=1e-15)
    # k 0 and z = 2: 0 and z**2 / (n + z**2) = 4 / 10
    assert wilson(0, 6, z=2) == pytest.approx((0.0, 0.4), abs=1e-15)


def test_wilson_ends_exactly_at_0_and_1_and_knows_nothing_of_no_questions():
    for n in range(1, 200):
        assert wilson(0, n)[0] == 0.0
        assert wilson(n, n)[1] == 1.0
        for k in range(1, n):
            low, high = wilson(k, n)
            assert 0 < low < k / n < high < 1
    assert wilson(0, 0) == (0.0, 1.0)


def refusal(function, *arguments) -> str:
    """What a function says of arguments that it refuses; "" if it takes them."""
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return ""


def test_wilson_refuses_impossible_counts():
    said = {pair: refusal(wilson, *pair) for pair in ((-1, 4), (5, 4), (1, 0))}
    assert [pair for pair, line in said.items() if "must lie between" not in line] == []


def test_wilson_equals_scipys():
    stats = pytest.importorskip("scipy.stats")
    for k, n in [(0, 10), (3, 10), (10, 10), (247, 300), (1, 1200), (1100, 1200)]:
        theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k, n) == pytest.approx(tuple(theirs), abs=1e-7)


def test_paired_interval_equals_the_example_published_with_the_r_package_statpsych():
    # ci.prop.ps(.05, 12, 4, 26, 6) gives 0.2548067 and 0.6251933
    assert paired_interval(*pairs(6, 26, 4, 12)) == pytest.approx((0.2548067, 0.6251933), abs=1e-6)


def test_paired_interval_is_antisymmetric_and_stays_within_minus_1_and_1():
    before, after = pairs(3, 7, 2, 5)
    low, high = paired_interval(before, after)
    assert paired_interval(after, before) == pytest.approx((-high, -low), abs=1e-15)
    assert paired_interval([0], [1])[1] == 1.0
    assert paired_interval([True], [False])[0] == -1.0
    assert paired_interval([1] * 10, [1] * 10)[0] < 0 < paired_interval([1] * 10, [1] * 10)[1]


def covered(up: float, down: float, n: int = 40) -> float:
    """How often the interval holds the true difference, summed over every outcome: no noise."""
    total = 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            ways = math.comb(n, gained) * math.comb(n - gained, lost)
            chance = ways * up**gained * down**lost * (1 - up - down) ** (n - gained - lost)
            low, high = paired_interval(*pairs(0, gained, lost, n - gained - lost))
            total += chance * (low <= up - down <= high)
    return total


def test_paired_interval_covers_the_true_difference_95_times_in_100():
    wrong = {}
    for up, down, most in (
        (0.3, 0.1, 0.97),
        (0.5, 0.05, 0.97),
        (0.1, 0.1, 0.98),
        (0.2, 0.0, 0.98),
        (0.05, 0.02, 1.0),  # three changes in 40 questions: too wide, which is the safe side
    ):
        share = covered(up, down)
        if not 0.94 < share < most:
            wrong[up, down] = share
    assert wrong == {}


def test_answers_that_do_not_pair_up_are_refused():
    for function in (paired_interval, mcnemar):
        with pytest.raises(ValueError, match="do not make pairs"):
            function([1, 0], [1])
        with pytest.raises(ValueError, match="do not make pairs"):
            function([], [])


def test_mcnemar_by_hand():
    # 10 changed, 2 of them for the worse: 2 * (1 + 10 + 45) / 1024
    assert mcnemar(*pairs(50, 8, 2, 40)) == 2 * 56 / 1024
    assert mcnemar(*pairs(50, 2, 8, 40)) == 2 * 56 / 1024
    assert mcnemar(*pairs(50, 4, 4, 40)) == 1.0
    assert mcnemar(*pairs(50, 0, 0, 40)) == 1.0


def test_mcnemar_equals_scipys_binomial_test_of_the_changed():
    stats = pytest.importorskip("scipy.stats")
    for gained, lost in [(1, 0), (12, 3), (30, 45), (400, 300), (900, 2)]:
        theirs = stats.binomtest(gained, gained + lost, 0.5).pvalue
        assert mcnemar(*pairs(5, gained, lost, 5)) == pytest.approx(theirs, rel=1e-9)


def test_bootstrap_of_groups_of_one_is_as_wide_as_the_normal_interval():
    values = [1] * 120 + [0] * 180
    low, high = bootstrap_by(range(300), values, seed=1)
    half = 1.96 * math.sqrt(0.4 * 0.6 / 300)
    assert (low, high) == pytest.approx((0.4 - half, 0.4 + half), abs=0.005)


def test_bootstrap_knows_that_four_copies_of_a_question_are_one_question():
    values = [1] * 30 + [0] * 45
    alone = bootstrap_by(range(75), values, seed=1)
    copies = [value for value in values for _ in range(4)]
    assert bootstrap_by([i // 4 for i in range(300)], copies, seed=1) == alone


def test_bootstrap_depends_on_the_seed_and_not_on_the_order_of_the_questions():
    generator = random.Random(0)
    rows = [(f"image {i // 3}", generator.random()) for i in range(60)]
    once = bootstrap_by(*zip(*rows, strict=True), seed=5)
    generator.shuffle(rows)
    assert bootstrap_by(*zip(*rows, strict=True), seed=5) == pytest.approx(once, rel=1e-12)
    assert bootstrap_by(*zip(*rows, strict=True), seed=6) != pytest.approx(once, rel=1e-6)


def test_bootstrap_refuses_one_group_and_rows_that_do_not_match():
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_by(["a", "a"], [0, 1], seed=0)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        bootstrap_by(["a", "b"], [0, 1, 1], seed=0)


def test_bootstrap_equals_scipys_within_its_noise():
    stats = pytest.importorskip("scipy.stats")
    values = [1] * 70 + [0] * 30
    theirs = stats.bootstrap(
        (values,), lambda x, axis: x.mean(axis), method="percentile", rng=0
    ).confidence_interval
    assert bootstrap_by(range(100), values, seed=0) == pytest.approx(tuple(theirs), abs=0.0101)


def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_right_sample():
    for n, c in [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (7, 7)]:
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(range(n), k))
            share = sum(min(subset) < c for subset in subsets) / len(subsets)
            assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_equals_scipys_hypergeometric_and_takes_large_n():
    stats = pytest.importorskip("scipy.stats")
    for n, c, k in [(200, 3, 10), (200, 150, 100), (64, 1, 8), (2000, 7, 100)]:
        theirs = stats.hypergeom.sf(0, n, c, k)
        assert pass_at_k(n, c, k) == pytest.approx(theirs, rel=1e-9)


def test_pass_at_k_refuses_impossible_counts():
    counts = ((4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0))
    said = {count: refusal(pass_at_k, *count) for count in counts}
    assert [count for count, line in said.items() if "pass@" not in line] == []


def test_the_majority_is_the_commonest_readable_answer():
    wrong = []
    for answers, winner in (
        (["A"], "A"),
        (["C", "B", "B"], "B"),
        (["D", "A", "A", "D"], "D"),  # equal: the first given, not the first of the alphabet
        ([None, None, None, "B"], "B"),  # unreadable answers do not vote
        ([None, None], None),
        ([], None),
    ):
        if (found := majority(answers)) != winner:
            wrong.append((answers, found))
    assert wrong == []


def test_students_t_over_three_seeds_is_4_3_standard_errors():
    # mean 3, s 1, standard error 1 / sqrt(3); t for 2 degrees has the closed form 4.302652729...
    half = math.sqrt(2 * 0.95**2 / (1 - 0.95**2)) / math.sqrt(3)
    assert students_t([2, 3, 4]) == pytest.approx((3, 3 - half, 3 + half), abs=1e-12)
    assert half * math.sqrt(3) == pytest.approx(4.3027, abs=1e-4)


def test_students_t_over_two_seeds_has_the_cauchy_quantile():
    # s = sqrt(2) / 2 for values 1 apart, so the standard error is 1/2
    half = math.tan(0.95 * math.pi / 2) / 2
    assert students_t([0, 1]) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-9)


def test_students_t_equals_scipys_for_any_number_of_seeds():
    stats = pytest.importorskip("scipy.stats")
    generator = random.Random(3)
    for n in [2, 3, 4, 5, 6, 10, 31, 200]:
        values = [generator.random() for _ in range(n)]
        mean, error = sum(values) / n, stats.sem(values)
        theirs = stats.t.interval(0.95, n - 1, mean, error)
        assert students_t(values) == pytest.approx((mean, *theirs), rel=1e-9)


def test_students_t_of_equal_seeds_has_no_width_and_of_one_seed_none_at_all():
    assert students_t([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least two"):
        students_t([0.5])


def test_students_interval_at_level_1_minus_p_ends_at_0():
    generator = random.Random(5)
    for n in (2, 3, 4, 7, 12):
        values = [generator.gauss(1.0, 2.0) for _ in range(n)]
        _, *bounds = students_t(values, 1 - student_p(values))
        assert min(map(abs, bounds)) < 1e-9


def test_students_p_of_equal_seeds_is_0_and_of_no_difference_at_all_1():
    assert student_p([2.0, 2.0, 2.0]) == 0
    assert student_p([0.0, 0.0, 0.0]) == student_p([-1.0, 1.0]) == 1


def test_holm_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, which may not fall: .02 .03 .06 .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    generator = random.Random(4)
    for _ in range(200):
        pvalues = [generator.random() ** 3 for _ in range(6)]
        rejected = set()
        for i in sorted(range(6), key=lambda i: pvalues[i]):  # stop at the first that fails
            if pvalues[i] > 0.05 / (6 - len(rejected)):
                break
            rejected.add(i)
        assert {i for i, p in enumerate(holm(pvalues)) if p <= 0.05} == rejected


def test_the_binomial_tail_by_hand():
    assert poisson_binomial_tail(0, [0.25] * 3) == 1.0
    assert poisson_binomial_tail(-1, [0.25] * 3) == 1.0
    assert poisson_binomial_tail(1, [0.25] * 3) == pytest.approx(1 - 27 / 64, abs=1e-15)
    assert poisson_binomial_tail(3, [0.25] * 3) == 1 / 64
    assert poisson_binomial_tail(4, [0.25] * 3) == 0.0
    assert poisson_binomial_tail(3, [1.0] * 3) == 1.0
    assert poisson_binomial_tail(1, [0.0] * 3) == 0.0


def test_the_binomial_tail_equals_scipys_far_out_too():
    stats = pytest.importorskip("scipy.stats")
    for k, n, p in [(330, 1200, 0.25), (700, 1200, 0.25), (40, 60, 1 / 3), (1200, 1200, 0.5)]:
        tail = poisson_binomial_tail(k, [p] * n)
        assert tail == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-9)


def test_the_poisson_binomial_tail_is_the_sum_over_all_outcomes():
    ps = [0.5, 0.25, 1 / 3, 0.25, 0.9, 0.0, 1.0]
    chances = dict.fromkeys(range(len(ps) + 1), 0.0)
    for outcome in itertools.product([0, 1], repeat=len(ps)):
        factors = (p if right else 1 - p for right, p in zip(outcome, ps, strict=True))
        chances[sum(outcome)] += math.prod(factors)
    for k in range(-1, len(ps) + 3):
        brute = sum(chance for right, chance in chances.items() if right >= k)
        assert poisson_binomial_tail(k, ps) == pytest.approx(brute, abs=1e-14)


def test_the_poisson_binomial_tail_refuses_what_is_no_chance():
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            poisson_binomial_tail(1, [0.5, bad])
