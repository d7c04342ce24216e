"""The ledger: a verdict stands only while its tests hold."""

import numpy as np
import pytest

from vanishing import ledger


def test_a_claim_whose_test_fails_raises_and_names_it():
    with pytest.raises(AssertionError, match="C5.*'false' no longer stands.*pigs fly"):
        ledger.claim("C5", "false", because={"two is two": True, "pigs fly": False}, numbers="")


def test_a_claim_needs_a_known_id_a_known_verdict_and_a_test():
    with pytest.raises(ValueError, match="id: got 'C99', expected one of C1, "):
        ledger.claim("C99", "holds", because={"x": True}, numbers="")
    with pytest.raises(ValueError, match="verdict: got 'true', expected one of 'holds'"):
        ledger.claim("C4", "true", because={"x": True}, numbers="")
    with pytest.raises(ValueError, match="because: got no tests"):
        ledger.claim("C4", "holds", because={}, numbers="")
    assert (
        ledger.claim("C4", "holds when it rains", because={"x": True}, numbers="").data["verdict"]
        == "holds when it rains"
    )


@pytest.mark.parametrize(
    "ours, verdict", [((1.0, 2.0), "reproduced"), ((1.0, 9.0), "differs"), ((9.0, 9.0), "not reproduced")]
)
def test_the_verdict_on_a_result_is_computed_from_its_rows(ours, verdict):
    rows = [("one", 1.0, ours[0], 0.1), ("two", 2.0, ours[1], 0.1)]
    record = ledger.reproduction("R1", verdict, rows=rows, seconds=1, source="x", reason="found")
    assert record.data["verdict"] == verdict
    for other in {"reproduced", "differs", "not reproduced"} - {verdict}:
        with pytest.raises(AssertionError, match="the page says"):
            ledger.reproduction("R1", other, rows=rows, seconds=1, source="x", reason="found")


def test_a_failed_reproduction_must_say_why():
    with pytest.raises(ValueError, match="reason: got none"):
        ledger.reproduction("R1", "not reproduced", rows=[("one", 1.0, 9.0, 0.1)], seconds=1, source="x")


def test_nan_is_never_within_tolerance():
    rows = [("one", 1.0, float("nan"), 0.1)]
    assert ledger.reproduction("R1", "not reproduced", rows=rows, seconds=1, source="x", reason="nan").data


def test_a_record_shows_itself_and_leaves_its_data():
    shown, metadata = ledger.claim("C4", "holds", because={"x": True}, numbers="1 < 2")._repr_mimebundle_()
    assert metadata["ledger"]["id"] == "C4" and 'id="c4"' in shown["text/html"] and "1 &lt; 2" in shown["text/html"]


def test_the_registry_holds_every_claim_and_result():
    known = ledger.registry()
    assert list(known["claims"]) == [f"C{i}" for i in range(1, 50)]
    assert list(known["results"]) == [f"R{i}" for i in range(1, 29)]


def test_a_text_that_looks_like_numbers_is_shown_as_it_is(monkeypatch):
    """24,960 is no pair, and 2.30 keeps its zero; a number can still be formatted by the sentence."""
    from myst_nb.core.variables import format_plain_text

    kept = {}
    monkeypatch.setattr(
        "IPython.display.display",
        lambda data, metadata, raw: kept.update({metadata["scrapbook"]["name"]: next(iter(data.values()))}),
    )
    ledger.glue(parameters="24,960", loss="2.30", small="3 × 10⁻⁵", rate=np.float32(0.25))
    shown = {name: format_plain_text(text, ".1f" if name == "rate" else "") for name, text in kept.items()}
    assert shown == {"parameters": "24,960", "loss": "2.30", "small": "3 × 10⁻⁵", "rate": "0.2"}


def test_negative_numbers_have_a_minus_sign():
    """In what a page and the scorecard show; codes and ranges keep their hyphen."""
    assert (
        ledger.minus("-0.5, (-3) and 1e-20 in C1-C9, pre-LN, x -.5") == "−0.5, (−3) and 1e-20 in C1-C9, pre-LN, x −.5"
    )
    record = ledger.reproduction("R1", "reproduced", rows=[("one", -1.0, -1.0, 0.1)], seconds=1, source="x")
    assert record.data["rows"][0]["ours"] == "−1.00"
    assert ledger.claim("C4", "holds", because={"yes": True}, numbers="got -2").data["numbers"] == "got −2"


def test_a_reference_keeps_the_digits_that_its_source_has():
    """27.15 is not cut to 27.1 because we ask for 4 around it; what a formula gives is; and no 1e+02."""
    rows = [
        ("paper", 27.15, 27.0, 4.0),
        ("formula", 1 / 3, 0.33, 0.2234),
        ("wide", 0.0, 9.0, 100.0),
        ("fine", 1.0, 1.0, 1e-5),
    ]
    table = ledger.reproduction("R13", "reproduced", rows=rows, seconds=1, source="x").data["rows"]
    assert [row["reference"] for row in table] == ["27.15", "0.33", "0", "1"]
    assert [row["tolerance"] for row in table] == ["4", "0.22", "100", "1.0 × 10⁻⁵"]
