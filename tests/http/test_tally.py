"""The books of a server."""

from ipfsreg.http.tally import Tally


def test_equal_requests_share_a_row() -> None:
    tally = Tally()
    tally.note("GET", "blob", 200, 100, 5000, 0.002)
    tally.note("GET", "blob", 200, 50, 1000, 0.2)
    ((method, route, status, row),) = tally.rows()
    assert (method, route, status) == ("GET", "blob", 200)
    assert (row.count, row.received, row.sent, sum(row.seconds.counts)) == (2, 150, 6000, 2)


def test_strangers_cannot_make_rows_without_end() -> None:
    tally = Tally()
    for method in ("PROPFIND", "MKCOL", "M-SEARCH", "SOURCE"):
        tally.note(method, "", 405, 1, 1, 0.0)
    ((method, route, status, row),) = tally.rows()
    assert (method, route, status, row.count) == ("other", "none", 405, 4)
