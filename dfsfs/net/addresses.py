"""The addresses of this machine, for a node that listens on all of them to tell its peers.

Linux only, without a resolver: IPv4 from the interfaces (ioctl SIOCGIFADDR, netdevice(7)), IPv6
from /proc/net/if_inet6. Loopback is told only when there is nothing else: then peers are on this
machine.
"""

import contextlib
import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

SIOCGIFADDR = 0x8915
_IF_INET6 = Path("/proc/net/if_inet6")


def local_addresses() -> list[str]:
    """Addresses as they stand in a URL (IPv6 in brackets), global ones first; never empty."""
    every: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [*_ipv4(), *_ipv6()]
    found = [address for address in every if not address.is_link_local]
    usable = [address for address in found if not address.is_loopback]
    usable = usable or [ipaddress.IPv4Address("127.0.0.1")]
    return [f"[{address}]" if address.version == 6 else str(address) for address in usable]


def _ipv4() -> list[ipaddress.IPv4Address]:
    result = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
                result.append(ipaddress.IPv4Address(answer[20:24]))
    return result


def _ipv6() -> list[ipaddress.IPv6Address]:
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:
        return []  # a kernel without IPv6
    return [ipaddress.IPv6Address(bytes.fromhex(line.split()[0])) for line in lines]
