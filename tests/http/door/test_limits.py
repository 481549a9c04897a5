"""How much one client may ask for."""

from __future__ import annotations

import pytest

from ipfsreg.http.door.limits import Allowances, AtOnce, client_of


def test_a_burst_is_taken_and_then_as_much_as_comes_back() -> None:
    allowances = Allowances(per_s=2, burst=3)
    assert [allowances.take("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert allowances.take("a", 0.0) == pytest.approx(0.5)
    assert allowances.take("a", 0.25) == pytest.approx(0.25)
    assert allowances.take("a", 0.5) == 0
    assert allowances.take("a", 0.5) > 0
    assert [allowances.take("a", 100.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]


def test_clients_do_not_take_from_each_other() -> None:
    allowances = Allowances(per_s=1, burst=1)
    assert allowances.take("a", 0.0) == 0
    assert allowances.take("a", 0.0) > 0
    assert allowances.take("b", 0.0) == 0


def test_what_is_given_back_does_not_count() -> None:
    allowances = Allowances(per_s=1, burst=1)
    for _ in range(10):
        assert allowances.take("a", 0.0) == 0
        allowances.give_back("a")
    allowances.give_back("a")
    assert allowances.take("a", 0.0) == 0
    assert allowances.take("a", 0.0) > 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    allowances = Allowances(per_s=1, burst=1)
    assert allowances.take("a", 100.0) == 0
    assert allowances.take("a", 50.0) == pytest.approx(1)


def test_the_table_of_clients_is_bounded_and_forgets_the_quietest() -> None:
    allowances = Allowances(per_s=0.001, burst=1, max_clients=100)
    assert allowances.take("quiet", 0.0) == 0
    for number in range(1000):
        allowances.take(str(number), 1.0)
        assert allowances.take("busy", 1.0) == 0 if number == 0 else allowances.take("busy", 1.0) > 0
    assert len(allowances._left) <= 100
    assert allowances.take("quiet", 1.0) == 0


def test_so_many_at_once_and_no_more() -> None:
    at_once = AtOnce(2)
    assert [at_once.begin("a") for _ in range(3)] == [True, True, False]
    assert at_once.begin("b")
    at_once.end("a")
    assert at_once.begin("a")
    at_once.end("a")
    at_once.end("a")
    at_once.end("b")
    assert at_once._under_way == {}


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("local", "local"),
    ],
)
def test_all_of_an_ipv6_network_is_one_client(address: str, client: str) -> None:
    assert client_of(address) == client
