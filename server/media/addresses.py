"""The addresses that media may be fetched from: the public internet, and networks that the operator names."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

GLOBAL_UNICAST = IPv6Network("2000::/3")

NOT_PUBLIC = (
    # No public web server has these addresses, even where Python counts them as global.
    IPv4Network("192.0.0.0/24"),  # protocol assignments, and a cloud's metadata
    IPv4Network("168.63.129.16/32"),  # Azure's host, which answers with a machine's secrets
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv6Network("2001::/23"),  # protocol assignments, Teredo among them
    IPv6Network("2002::/16"),  # 6to4, which holds any IPv4 address
    IPv6Network("3fff::/20"),  # documentation
)


def may_fetch_from(address: str, networks: Sequence[Network] = ()) -> bool:
    """Return whether a connection to this address is allowed: it is public, or in one of `networks`.

    Private, loopback, link-local (cloud metadata), shared, multicast and reserved addresses are not public.
    IPv6 addresses that contain an IPv4 address (mapped, NAT64, 6to4, Teredo) are not public either.
    """
    ip = ip_address(address)
    named = any(ip in network for network in networks if network.version == ip.version)
    return named or _is_public(ip)


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address) and ip not in GLOBAL_UNICAST:
        return False
    special = any(ip in network for network in NOT_PUBLIC if network.version == ip.version)
    return ip.is_global and not (ip.is_multicast or special)
