"""What the packages of the service export."""

import pytest


@pytest.mark.parametrize("name", ["fleet", "front"])
def test_packages_say_what_they_export(name):
    module = __import__(f"recipes.place.{name}", fromlist=["__all__"])
    assert module.__all__ == sorted(module.__all__)
