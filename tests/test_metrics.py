"""Numbers that are cheap to keep."""

from ipfsreg.metrics import Histogram


def test_a_value_on_a_bound_is_at_or_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        histogram.observe(value)
    assert histogram.cumulated() == [("1", 2), ("2", 4), ("+Inf", 5)]
    assert histogram.total == 104.0


def test_histograms_add_up() -> None:
    one, other = Histogram((1.0,)), Histogram((1.0,))
    one.observe(0.5)
    other.observe(5.0)
    one.add(other)
    assert one.cumulated() == [("1", 1), ("+Inf", 2)]
    assert one.total == 5.5
