"""The endpoint of either end of the control socket.

Neither end has an identity that lasts: the kernel vouches for the user on the other side, and that
is all there is to know. So each start takes a random id, and no key is read or made.
"""

import secrets

from dfsfs.base.types import NodeId
from dfsfs.net import Endpoint, control_transports
from dfsfs.runtime import World

_NODE_ID_BYTES = 32
_NETWORK = bytes(16)  # none: not compared when the kernel vouches for the peer


def control_endpoint(world: World, name: str) -> Endpoint:
    """An endpoint for `unix://` alone."""
    node = NodeId(secrets.token_bytes(_NODE_ID_BYTES))
    return Endpoint(world, node, name=name, network=_NETWORK, transports=control_transports())
