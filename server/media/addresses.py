"""Which addresses media may be fetched from: the public internet, and networks that the operator names."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

GLOBAL_UNICAST = IPv6Network("2000::/3")

NOT_FETCHED = (
    # Not somebody's web server, whatever this version of Python holds them for.
    IPv4Network("192.0.0.0/24"),  # protocol assignments, and a cloud's metadata
    IPv4Network("168.63.129.16/32"),  # Azure's host, which answers with a machine's secrets
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv6Network("2001::/23"),  # protocol assignments, Teredo among them
    IPv6Network("2002::/16"),  # 6to4, which holds any IPv4 address
    IPv6Network("3fff::/20"),  # documentation
)


def may_fetch_from(address: str, networks: Sequence[Network] = ()) -> bool:
    """Whether a connection to this address may be made: it is public, or in one of `networks`.

    Private, loopback, link-local (cloud metadata), shared, multicast and reserved addresses are not public,
    nor is an IPv6 address that stands for an IPv4 one (mapped, NAT64, 6to4, Teredo).
    """
    ip = ip_address(address)
    named = any(ip in network for network in networks if network.version == ip.version)
    return named or _is_public(ip)


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address) and ip not in GLOBAL_UNICAST:
        return False
    special = any(ip in network for network in NOT_FETCHED if network.version == ip.version)
    return ip.is_global and not (ip.is_multicast or special)
