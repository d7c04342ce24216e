"""The exercises: the solution is right, the wrong answers are not, the stub is neither."""

import re

import numpy as np
import pytest

import book
from vanishing import exercises

TOPICS = sorted({page.parent.name for page in book.toc_pages() if page.name == "exercises.md"})


ALL = [name for topic in TOPICS for name in exercises.names(topic)]


def solutions(topic, strip=False):
    """The functions that a topic's page defines, with or without what stands between the markers."""
    import vanishing

    namespace = {"np": np, "vg": vanishing}
    for code in exercises.cells(topic):
        if exercises.SOLUTION.search(code):
            exec(exercises.without_solution(code) if strip else code, namespace)
    return namespace


def attempt(name, strip=False):
    topic, function = name.split("/")
    return solutions(topic, strip)[function]


@pytest.mark.parametrize("topic", TOPICS)
def test_four_to_six_exercises(topic):
    assert 4 <= len(exercises.names(topic)) <= 6


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(5))
def test_the_solution_gets_every_point(name, seed):
    feedback = exercises.check(name, attempt(name), rng=np.random.default_rng(seed))
    assert feedback.points == feedback.possible, feedback


@pytest.mark.parametrize("name", ALL)
def test_wrong_answers_lose_points_and_are_told_why(name):
    """At least three mistakes that readers make, each rejected with a sentence."""
    wrong = exercises._rejected[name]
    assert len(wrong) >= 3
    for function in wrong:
        for seed in range(5):
            feedback = exercises.check(name, function, rng=np.random.default_rng(seed))
            assert feedback.points < feedback.possible, f"{function.__name__} passes"
            assert not feedback.alike.startswith("not done yet")
            assert all(problem is None or len(problem) > 10 for _, problem in feedback.rows)


@pytest.mark.parametrize("name", ALL)
def test_other_right_answers_get_every_point(name):
    """Written differently from the solution: a check asks for properties, not for one way to write it."""
    assert exercises._accepted.get(name), "expected vg.accepts with another right answer"
    for function in exercises._accepted[name]:
        for seed in range(5):
            feedback = exercises.check(name, function, rng=np.random.default_rng(seed))
            assert feedback.points == feedback.possible, (function.__name__, feedback)


@pytest.mark.parametrize("name", ALL)
def test_the_stub_is_not_done_yet(name):
    feedback = exercises.check(name, attempt(name, strip=True), rng=np.random.default_rng(0))
    assert feedback.points == 0 and feedback.alike.startswith("not done yet")
    assert repr(feedback) == f"{name}: 0 of {feedback.possible:g} points: {feedback.alike}"


@pytest.mark.parametrize("topic", TOPICS)
def test_the_readers_notebook_holds_no_solution(topic):
    """Neither a marker nor a line of a solution, nor a wrong answer, nor a check."""
    text = (book.NOTEBOOKS / "chapters" / topic / "exercises.ipynb").read_text("utf-8")
    assert "SOLUTION" not in text and "vg.expects" not in text and "vg.rejects" not in text
    for code in exercises.cells(topic):
        for region in exercises.SOLUTION.finditer(code):
            for line in region.group().splitlines()[1:-1]:
                if len(line.strip()) > 12:
                    assert line.strip() not in text


def test_a_result_of_the_wrong_shape_is_named():
    assert exercises.differs(np.zeros(5), np.zeros((3, 5))) == "your result has shape (5,), expected (3, 5)"
    assert "is a str, expected numbers" in exercises.differs("a", 1.0)
    assert exercises.differs(None, 1.0) is not None
    assert exercises.differs([1.0, 2.0], np.array([1.0, 2.0])) is None
    assert "entry [1] is 3, expected 2" in exercises.differs([1.0, 3.0], np.array([1.0, 2.0]))
    assert exercises.differs([np.nan], np.array([1.0])) is not None


def test_an_attempt_that_raises_is_feedback_not_a_crash():
    feedback = exercises.check(ALL[0], lambda *_: 1 / 0)
    assert feedback.points == 0 and "ZeroDivisionError" in repr(feedback)


def test_unknown_exercises_and_attempts_that_are_not_functions():
    with pytest.raises(ValueError, match=r"did you mean 'chain-rule/critical_std'"):
        exercises.check("chain-rule/critical_sdt", len)
    with pytest.raises(ValueError, match="got topic 'softmx', expected one of .*chain-rule"):
        exercises.check("softmx/stable", len)
    with pytest.raises(TypeError, match="got int, expected the function"):
        exercises.check("chain-rule/critical_std", 3)


def test_feedback_escapes_what_a_reader_wrote():
    def attempt(*_):
        raise ValueError("<script>")

    html = exercises.check(ALL[0], attempt)._repr_html_()
    assert "&lt;script&gt;" in html and not re.search("<script", html)


def test_an_attempt_that_changes_its_arguments_is_judged_on_its_result():
    def in_place(factors):
        np.log(factors, out=factors)
        return np.exp(factors.mean(axis=-1))

    feedback = exercises.check("chain-rule/typical_factor", in_place)
    assert feedback.points == feedback.possible
