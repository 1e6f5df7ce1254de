"""The names that notebooks import."""

import pytest

import aerostat


@pytest.mark.parametrize("name", aerostat.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(aerostat, name)
    assert value.__doc__
    assert name in dir(aerostat)
    assert getattr(aerostat, name) is value


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = aerostat.nosuch
