"""The other end of block messages: what this node does for its peers.

Everything that comes in is checked: digests are well-formed, blocks match theirs before they are
stored, lists are bounded. A handler that raises answers with the error; it never harms this
process.

    blocks.get   [digest]            -> payload: the block        NotFound, Corrupt
    blocks.put   [digest] + block    -> [was new]                 Full
    blocks.offer [digest, ...]       -> [those that are not here]   promises to keep the others: the
                                             grace period of what is unreferenced begins anew
    blocks.lacks [digest, ...]       -> [those that are not here]   promises nothing: for
                                             repair, which would keep garbage alive for ever
"""

from typing import Any

from dfsfs.base.errors import RemoteProtocolError
from dfsfs.base.limits import (
    BLOCK_BYTES_MAX,
    INLINE_HASH_BYTES_MAX,
    OFFER_COUNT_MAX,
)
from dfsfs.base.types import Digest, digest_matches, digest_text, is_digest
from dfsfs.blocks import BlockStore
from dfsfs.cluster.cache import CacheKeeper
from dfsfs.cluster.fetch import METHOD_GET
from dfsfs.cluster.replicate import METHOD_LACKS, METHOD_OFFER, METHOD_PUT
from dfsfs.net import Endpoint, Reply, Request, Session
from dfsfs.runtime import World


class BlockService:
    """Handlers of the block messages of one node."""

    def __init__(
        self,
        world: World,
        store: BlockStore,
        cache: CacheKeeper,
    ) -> None:
        self._world = world
        self._store = store
        self._cache = cache

    def register(self, endpoint: Endpoint) -> None:
        """Answer these messages on `endpoint`."""
        endpoint.serve_calls(METHOD_GET, self.get)
        endpoint.serve_calls(METHOD_PUT, self.put)
        endpoint.serve_calls(METHOD_OFFER, self.offer)
        endpoint.serve_calls(METHOD_LACKS, self.lacks)

    async def get(self, session: Session, request: Request) -> Reply:
        """Give a block."""
        digest = _digest(request.body)
        block = self._store.get_nowait(digest)
        if block is None:
            block = await self._store.get(digest)
        return Reply([], block)

    async def put(self, session: Session, request: Request) -> Reply:
        """Take a block, if its bytes are what its digest says."""
        digest = _digest(request.body)
        block = request.payload
        if len(block) > BLOCK_BYTES_MAX:
            raise RemoteProtocolError(f"block of {len(block)} bytes")
        if len(block) > INLINE_HASH_BYTES_MAX:
            good = await self._world.run_blocking(digest_matches, digest, block)
        else:
            good = digest_matches(digest, block)
        if not good:
            raise RemoteProtocolError(f"the bytes sent for {digest_text(digest)} are others")
        pins = self._store.pins
        pins.pin(digest)  # a copy that is here already must not be collected meanwhile
        try:
            return Reply([await self._cache.put(digest, block)])
        finally:
            pins.unpin(digest)

    async def offer(self, session: Session, request: Request) -> Reply:
        """Say which of the offered blocks are not here, and keep the others."""
        missing = []
        for digest in _digests(request.body):
            if self._store.has(digest):
                self._store.pins.promise(digest)
            else:
                missing.append(digest)
        return Reply(missing)

    async def lacks(self, session: Session, request: Request) -> Reply:
        """Say which of these blocks are not here."""
        return Reply([digest for digest in _digests(request.body) if not self._store.has(digest)])


def _digests(body: Any) -> list[Digest]:
    if not (
        isinstance(body, list)
        and len(body) <= OFFER_COUNT_MAX
        and all(is_digest(item) for item in body)
    ):
        raise RemoteProtocolError("malformed list of blocks")
    return body


def _digest(body: Any) -> Digest:
    if not (isinstance(body, list) and len(body) >= 1 and is_digest(body[0])):
        raise RemoteProtocolError("malformed block request")
    return Digest(body[0])
