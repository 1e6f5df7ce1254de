"""Any exception as an error of ours."""

from tracer.errors import ProbeError, foreseen


def raised(problem: Exception) -> Exception:
    try:
        raise problem
    except Exception as error:
        return error


def test_an_error_of_ours_stays_as_it_is():
    error = ProbeError("cannot", reason="because", remedy="do")
    assert foreseen(raised(error)) is error


def test_another_says_what_it_is_and_where_it_came_from():
    problem = raised(OverflowError("too large"))
    error = foreseen(problem)
    assert "OverflowError: too large, at test_foreseen.py:" in error.reason
    assert error.remedy
    assert error.__cause__ is problem
    assert foreseen(ValueError("never raised")).reason == "ValueError: never raised"
