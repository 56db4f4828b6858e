"""Who a client is: addresses, and what proxies say."""

import pytest

from flashsale.errors import InvalidValueError
from flashsale.peers import Proxies, client_of


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_a_client_is_what_its_address_belongs_to(address: str, client: str) -> None:
    assert client_of(address) == client


PROXIES = Proxies("10.0.0.0/8, 192.0.2.1,fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # nobody trusts him
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("fd00::1", ["2001:db8:1:2:3::4"], "2001:db8:1:2::/64"),
        ("10.1.2.3", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),  # what he wrote himself is on the left
        ("10.1.2.3", ["6.6.6.6, 198.51.100.1, 10.9.9.9, 192.0.2.1"], "198.51.100.1"),
        ("10.1.2.3", ["6.6.6.6", "198.51.100.1,10.9.9.9"], "198.51.100.1"),  # two headers are one, in order
        ("10.1.2.3", ["10.7.7.7, 10.9.9.9"], "10.7.7.7"),  # from within
        ("10.1.2.3", ["198.51.100.1:50123"], "198.51.100.1"),
        ("10.1.2.3", ["[2001:db8:1:2::5]:443"], "2001:db8:1:2::/64"),
        ("10.1.2.3", ["198.51.100.1, unknown"], "10.1.2.3"),  # the proxy does not know, so nobody does
        ("10.1.2.3", ["unknown, 10.9.9.9"], "10.9.9.9"),
        ("10.1.2.3", ["", ",,"], "10.1.2.3"),
        ("10.1.2.3", [", ".join(["10.0.0.1"] * 5000)], "10.0.0.1"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_first_from_the_right_that_is_not_trusted_is_the_client(
    peer: str, forwarded: list[str], client: str
) -> None:
    assert PROXIES.client_of(peer, forwarded) == client


def test_nobody_is_trusted_unless_somebody_says_so() -> None:
    assert Proxies().client_of("127.0.0.1", ["198.51.100.1"]) == "127.0.0.1"


@pytest.mark.parametrize("networks", ["proxy", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/8,", " "])
def test_what_names_no_networks_is_refused_with_a_sentence(networks: str) -> None:
    with pytest.raises(InvalidValueError, match=r"names no networks: give such as 10.0.0.0/8,192.0.2.7$"):
        Proxies(networks)
