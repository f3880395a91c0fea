"""Every bound of the system, in one place, with asserts on how they relate.

Sizes are bytes, times seconds (the suffix says which). A queue, cache or wait that is not bounded
by a name here is a bug.
"""

from dfsfs.base.units import GIB, KIB, MIB

# -- names and files (POSIX) ------------------------------------------------------------------
NAME_BYTES_MAX = 255
SYMLINK_BYTES_MAX = 4095
LINKS_MAX = 65_000  # as ext4
XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 64 * KIB
XATTR_INODE_BYTES_MAX = 256 * KIB
FILE_BYTES_MAX = (1 << 63) - 1 - 4096  # what off_t and the kernel's page arithmetic can address

# -- blocks and content -----------------------------------------------------------------------
BLOCK_SHIFT_MIN = 12
BLOCK_SHIFT_MAX = 22
BLOCK_SHIFT_DEFAULT = 18  # 256 KiB
BLOCK_BYTES_MAX = 1 << BLOCK_SHIFT_MAX
TREE_FANOUT = 256  # children of an interior node: 256 * 41 bytes of digest and size, about 10 KiB
INLINE_BYTES_MAX = 4 * KIB  # a file up to this size lives in its content row
PATCHES_BYTES_MAX = 64 * KIB  # changed bytes that an fsynced file keeps in its row, over its tree
PATCHES_CLOSED_BYTES_MAX = 16 * KIB  # and a closed one
PATCHES_COUNT_MAX = 256
PATCHES_PACKED_BYTES_MAX = PATCHES_BYTES_MAX + 16 * PATCHES_COUNT_MAX + 64
SEGMENT_BYTES = 64 * MIB
SMALL_BLOCK_BYTES_MAX = 16 * KIB  # up to this size a block is kept in SQLite, above in segments
SEGMENT_FILES_OPEN_MAX = 256
PUT_BATCH_BYTES_MAX = 16 * MIB  # blocks appended by one write
PUT_BATCH_COUNT_MAX = 256
RECLAIM_BYTES_MAX = 16 * MIB  # removed but still on disk, before a removal gives it all back
RECLAIM_COUNT_MAX = 256
STORE_RESERVE_BYTES_MAX = 1 * GIB  # of the disk, left free for others: 5 %, at most this
STORE_RESERVE_BYTES_MIN = 48 * MIB  # ... and at least this, or a quarter of a small disk: for logs
STORE_RESERVE_DIVISOR = 20
BALLAST_BYTES = 4 * MIB  # held back, so that a node can start on a full disk
STORE_LOW_DIVISOR = 16  # with less than this part of it free, a store keeps no more cache
STORE_LOW_BYTES_MAX = 256 * MIB  # ... or with less than this
STORE_FULL_BYTES = 4 * BLOCK_BYTES_MAX  # with less room than this a node says that it is full
STORE_INDEX_CACHE_BYTES = 16 * MIB  # pages of its database in memory
STORE_WAL_BYTES_MAX = 32 * MIB  # write-ahead log of the index before it is folded in
STORE_WAL_KEPT_BYTES = 4 * MIB  # what stays of it after that, to be overwritten in place
LOCATIONS_CACHED_MAX = 16_384  # digests whose place on disk is known without SQL: 4 GiB of blocks
BAD_BLOCKS_MAX = 65_536  # blocks known to be corrupt on disk that `has` denies

# -- memory -----------------------------------------------------------------------------------
WRITE_BUFFER_BYTES_MAX = 64 * MIB  # dirty bytes of a node not yet in blocks
UNFOLDED_LEAVES_MAX = 1024  # stored blocks of a file being written that no tree refers to yet
WRITE_BACK_PARALLEL_MAX = 8  # partial blocks of a file completed at a time
OPEN_HANDLES_MAX = 1 << 20  # of a mount
HANDLERS_MAX = 1000  # kernel requests handled at a time; the kernel keeps the others
LISTED_NAMES_MAX = 1 << 21  # names that open directories hold, but for a single larger one
INVALIDATIONS_MAX = 1 << 16  # kernel invalidations waiting for their thread; above, names merge
UPLOAD_BYTES_MAX = 64 * MIB  # blocks stored here and on their way to other holders
READ_AHEAD_BYTES_MAX = 8 * MIB  # fetched ahead of one sequential reader
READ_AHEAD_BYTES_MIN = 512 * KIB  # the window it starts with
NODE_CACHE_BYTES_MAX = 16 * MIB  # interior nodes of content trees shared by many readers
READER_NODES_BYTES_MAX = 1 * MIB  # those of a reader that shares none: of 6 GiB of file
WRITER_BYTES_MAX = 4 * MIB  # gathered by one streaming writer before it is stored
FETCHES_AWAITED_MAX = 1024  # with more blocks than this on their way, none is fetched ahead
FETCHES_MAX = 96  # blocks that peers are asked for at a time ...
FETCH_BYTES_MAX = 32 * MIB  # ... and bytes of them that peers were asked for, as far as is known
WAL_TIGHT_BYTES = 256 * KIB  # on a full disk a write-ahead log above this is given back
WAL_TIGHT_BYTES_MAX = 2 * MIB  # ... and one above this before anything more is written
LOG_LOOK_TRANSACTIONS = 8  # between two looks at that
WAL_BYTES_MAX = 64 * MIB  # a write-ahead log is truncated to this when it restarts
CACHE_BLOCKS_MAX = 1 << 18  # of the cache part of a store; above, the oldest leave early
PENDING_COPIES_MAX = 65_536  # (block, peer) pairs waiting to be copied; above, a scan finds them
UNFLUSHED_BLOCKS_MAX = 4096  # that one peer took of us; at a quarter of it, it is asked to flush
# Up to this size data is hashed on the loop: a thread costs more (55 us; BLAKE3 of 256 KiB 34 us).
INLINE_HASH_BYTES_MAX = 256 * KIB
BLOCKING_THREADS_MAX = 16

# -- wire -------------------------------------------------------------------------------------
FRAME_HEADER_BYTES_MAX = 64 * KIB
FRAME_PAYLOAD_BYTES_MAX = BLOCK_BYTES_MAX + 64 * KIB
STREAM_CREDIT_BYTES = 4 * MIB  # unacknowledged payload of one stream
STREAMS_PER_SESSION_MAX = 1024  # calls in flight, each way
MESSAGE_STREAMS_PER_SESSION_MAX = 64  # open message streams, each way
SEND_QUEUE_BYTES_MAX = 16 * MIB  # bulk frames of one session waiting for its socket
URGENT_QUEUE_BYTES_MAX = 2 * MIB  # small frames of one session waiting for its socket
URGENT_FRAME_BYTES_MAX = 16 * KIB  # a frame up to this size overtakes bulk frames
URGENT_BURST_MAX = 64  # small frames sent before one bulk frame gets its turn
INBOUND_BYTES_MAX = 64 * MIB  # payloads that the calls of one peer hold in memory here
SOCKET_UNSENT_BYTES = 128 * KIB  # what a socket takes beyond what is on the wire
HELLO_BYTES_MAX = 16 * KIB
METHOD_BYTES_MAX = 64
FAILURE_TEXT_BYTES_MAX = 512
HANDSHAKES_MAX = 64  # accepted connections that have not said hello yet
CODEC_DEPTH_MAX = 16
CODEC_ITEMS_MAX = 65_536

# -- time -------------------------------------------------------------------------------------
DIAL_TIMEOUT_S = 5.0
HANDSHAKE_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 10.0
SEND_STALL_S = 10.0  # a peer that takes no byte for so long loses its session
GOODBYE_TIMEOUT_S = 1.0  # for the other side to close after our goodbye
ACCEPT_PAUSE_S = 0.1  # after a failed accept, such as too many open files
SESSION_LEASE_S = 2.0  # a session without anything received for so long is dead
KEEPALIVE_S = SESSION_LEASE_S / 4
RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 15.0
FETCH_TIMEOUT_S = 30.0
HEDGE_S = 0.5  # a holder that has not answered by then is not waited for alone
SYNC_TIMEOUT_S = 30.0  # longest a peer may take to flush to its disk
JOIN_TIMEOUT_S = 60.0  # longest a start with --bootstrap tries to reach the network
CHECKPOINT_TIGHT_S = 0.1  # and on a full disk
CHECKPOINT_S = 1.0  # how often the write-ahead logs are looked at
REPAIR_SCAN_S = 600.0  # how often a node compares its blocks with their other holders unasked
REPAIR_PATIENCE_S = 10.0  # a look at all blocks waits so long for the queue of fresh copies
REPAIR_TOLD_S = 2.0  # how often a node that copies tells the others what is left
REPAIR_AGAIN_S = 5.0  # after a look that could not mend everything
REPAIR_LEFT_S = 15.0  # others whose turn it is to copy a block are given so long to begin
OVERTAKEN_WAIT_S = 3.0  # a start waits so long for peers to say what they hold of this node
STABLE_S = 5.0  # a session that lasted so long was a good one: redialling begins anew
GRADE_S = 1.0  # how often absence is judged
RETURN_S = 20.0  # an absent member counts again when it has been back for so long
FULL_PEER_S = 15.0  # a peer that had no space is not offered blocks for so long
SLOW_PEER_S = 60.0  # one that took no block within CALL_TIMEOUT_S is asked after others for so long
SHORT_CHECK_S = 1.0  # how often it is asked whether files on too few nodes have reached them
SHORT_SUSPECT_S = 60.0  # after a block reached too few nodes, what is committed is looked at
GC_PERIOD_S = 3 * 3600.0  # between two looks for unreferenced blocks, or an eighth of the grace
GC_PERIOD_MIN_S = 1.0
SETTLE_S = 5.0  # how often what was closed and not fsynced is flushed, too
SETTLE_PATIENCE_S = 30.0  # for a writer to say that it has; then others look
SETTLE_EMPTY_S = 10.0  # a file that lost its first content is empty after so long, not sooner
GC_RETRY_S = 300.0  # after a look that could not read every tree
GC_CLOCK_S = 10.0  # how often the clock of grace periods is written down
SCRUB_REST_MAX_S = 60.0  # a paced scrub looks again at least so often whether it is late
CONFLICTS_PAGE = 256  # conflict copies looked at in one step
CONTENDED_S = 5.0  # names of a directory that two mounts change at a time are not cached so long
CONTENDED_MAX = 4096  # such directories
INVALIDATION_PATIENCE_S = 0.02  # the same where names can be made to be looked up again instead
INVALIDATION_TIMEOUT_S = 1.0  # a change is acknowledged even if the kernel has not yet forgotten
KERNEL_CACHE_S = 3600.0  # entries and attributes; what changes is invalidated
READER_PATIENCE_S = 0.5  # longest a change from elsewhere waits for readers of a file
READER_SETTLE_S = 5.0  # after reaching the end of a file a reader may be given a newer version
SHARED_FILE_S = 10.0  # a file that changed elsewhere while it was read here is shared for so long
SHARED_FILES_MAX = 4096  # ... and so many files are
RELATIME_S = 24 * 3600.0  # atime is updated at least so often when a file is read, as Linux does
HANDLER_TIMEOUT_S = 60.0  # longest a filesystem call may take
CALLERS_LOOK_S = 0.25  # a call that takes longer is looked after: its caller may have been killed
CLOCK_AHEAD_MAX_S = 3600.0  # a stamp further ahead of local time is refused
SETTLED_S = 3 * CLOCK_AHEAD_MAX_S  # content so old was flushed long ago, even if a clock errs
CLOCK_LEAP_MAX_S = CLOCK_AHEAD_MAX_S / 2  # a clock that leaps further ahead is not believed

# -- leases -----------------------------------------------------------------------------------
LEASES_MAX = 65_536  # permissions of others kept here; above, the oldest go back
LEASES_GIVEN_MAX = 2 * LEASES_MAX  # of ours that one peer may keep: some are on their way back
LEASE_ORIGINS_MAX = 4096  # incarnations of which it is remembered who has what they made
LEASES_AHEAD_MAX = 256  # given with one that was asked for, to who asks for one after the other
LEASE_RUN_S = (
    0.5  # requests sooner after each other than this, and an eighth for each given, are a run
)
LEASE_PEACE_S = 0.003  # a holder that had to wait for a lease is left in peace for so long
LEASE_MARGIN_S = 8.0  # for a holder that is alive to write back
LEASE_TIMEOUT_S = SESSION_LEASE_S + LEASE_MARGIN_S  # longest wait for a lease
JOINING_TIMEOUT_S = 5.0  # longest a call waits for this node to hold what its peers have
JOINING_ROWS_MAX = 10_000  # with more rows than this to catch up with, nobody's changes wait
DRAFTS_MAX = 1024  # files a mount is making whose attributes nobody waits for
DRAFT_S = 5.0  # those made earlier than this end when another is made
DRAFTS_HEARD_MAX = 64 * DRAFTS_MAX  # those of all others
SENDER_WAITING_MAX = 65_536  # marks, questions and lease messages for one peer; then it must go
LEASES_PER_MESSAGE_MAX = 512  # requests and grants sent as one

# -- exchange ---------------------------------------------------------------------------------
ROWS_BATCH_BYTES_MAX = 512 * KIB
ROWS_BATCH_COUNT_MAX = 4096
# One transaction is never cut, so a batch may be larger than asked for; above this it is refused.
ROWS_MESSAGE_BYTES_MAX = 4 * MIB
REACH_ORIGINS_MAX = 65_536  # incarnations that what one peer sends may rest on; then it must go
VECTOR_ENTRIES_MAX = 4096  # writers of one file, over all incarnations
INODE_CACHE_COUNT = 16_384  # decoded inodes a namespace keeps ...
INODE_CACHE_BYTES_MAX = 32 * MIB  # ... with the small files and changed bytes that are in them
ROWS_SLICE_BYTES = 16 * KIB  # of catching up at a time: applying it must not hold the loop long
ROWS_COUNTED_MAX = 100_000  # rows a peer lacks are counted up to here
ROWS_SPARE_S = 0.02  # rows gather so long for a peer that no call waits for
ROWS_ACKNOWLEDGED_S = 20.0  # a peer that acknowledges nothing for so long loses its session
ROWS_REPORT_S = 2.0  # how often a receiver tells everything it holds
GOSSIP_S = 5.0  # how often two nodes compare their member tables
SUSPECT_S = 10.0  # a peer without a session is suspect for so long, then dead
OFFER_COUNT_MAX = 512  # digests in one offer
REPAIR_COPIES_MAX = 4  # blocks a repair sends at a time
SETTLE_COUNT_MAX = 64  # files looked at in one step for whether they are flushed
GC_AWAITED_DIVISOR = 4  # with less than this part of a store free, nobody's return is waited for
GC_PAGE_COUNT = 256  # blocks looked at in one step of a garbage collection
GC_NEWS_MAX = 1024  # contents committed during a look; above, it begins anew
SCRUB_PAGE_COUNT = 16  # blocks verified in one step of a scrub
SCRUB_BAD_MAX = 1024  # bad blocks whose paths one scrub looks up
SHORT_FILES_MAX = 1000  # files on too few nodes that are remembered by name
SHORT_FILES_SHOWN = 100  # of them in one status, the newest
FINDINGS_MAX = 1000  # lines one check reports
MEMBERS_MAX = 1024
ADDRESSES_PER_MEMBER_MAX = 8
NODE_NAME_BYTES_MAX = 64

# -- forgetting what was removed --------------------------------------------------------------
PURGE_PERIOD_S = 600.0  # how often a node looks for what is dead, or a hundredth of the horizon
PURGE_PERIOD_MIN_S = 1.0
PURGE_POLL_MAX_S = 5.0  # how often members are asked while a round is under way
PURGE_STEP_COUNT = 64  # inodes forgotten in one transaction
RECLAIM_PAGES_COUNT = 256  # of a database given back to the disk at a time
RECLAIM_REST_S = 0.05  # between two of those
RECLAIM_KEPT_COUNT = 1024  # unused pages it keeps: 4 MiB
HORIZON_CLOCK_S = 60.0  # how often it is written down who was heard when
SNAPSHOT_BYTES_MAX = 16 * GIB  # all rows of a peer, waiting to be applied: 25 million files
REJOIN_RETRY_S = 1.0  # after a snapshot that a peer could not give

# -- operator face ----------------------------------------------------------------------------
LOG_BYTES_MAX = 5 * MIB  # the log of a node in the background; one predecessor is kept
PREDECESSOR_TIMEOUT_S = 5.0  # a start waits so long for a node that was just unmounted to end
METRICS_CONNECTIONS_MAX = 8  # at a time; further ones are closed at once
METRICS_REQUEST_BYTES_MAX = 8 * KIB
METRICS_TIMEOUT_S = 5.0  # longest one request may take
CONTROL_PIECE_BYTES = 256 * KIB  # of a file on its way through the control socket
CONTROL_ANSWER_BYTES_MAX = 2 * MIB  # a page of a listing, a status
CONTROL_LIST_COUNT_MAX = 1000  # entries in one page of a listing
CONTROL_TIMEOUT_S = 60.0  # a command waits so long for one answer of its node

# -- defaults a user can change ---------------------------------------------------------------
REPLICAS_DEFAULT = 3
REPLICAS_MAX = 16
WRITE_CONCERN_DEFAULT = 2
CACHE_BYTES_DEFAULT = 10 * GIB
REPAIR_AFTER_DEFAULT_S = 300.0
REPAIR_RATE_DEFAULT = 64 * MIB  # bytes a second that one node copies to restore what is missing
GC_GRACE_DEFAULT_S = 24 * 3600.0
SCRUB_PERIOD_DEFAULT_S = 30 * 24 * 3600.0
HORIZON_DEFAULT_S = 60 * 24 * 3600.0  # whoever is away for longer takes a snapshot when it returns
LISTEN_PORT_DEFAULT = 4000

assert (1 << BLOCK_SHIFT_MIN) <= (1 << BLOCK_SHIFT_DEFAULT) <= BLOCK_BYTES_MAX
assert TREE_FANOUT * 64 <= SMALL_BLOCK_BYTES_MAX  # an interior node is a small block
assert PUT_BATCH_BYTES_MAX >= BLOCK_BYTES_MAX
assert READ_AHEAD_BYTES_MIN <= READ_AHEAD_BYTES_MAX
assert INLINE_BYTES_MAX < (1 << BLOCK_SHIFT_DEFAULT)
assert BLOCK_BYTES_MAX < FRAME_PAYLOAD_BYTES_MAX
assert STREAM_CREDIT_BYTES >= BLOCK_BYTES_MAX
assert URGENT_FRAME_BYTES_MAX <= URGENT_QUEUE_BYTES_MAX
assert FRAME_PAYLOAD_BYTES_MAX < SEND_QUEUE_BYTES_MAX <= INBOUND_BYTES_MAX
assert HELLO_BYTES_MAX <= FRAME_HEADER_BYTES_MAX
assert XATTR_VALUE_BYTES_MAX < ROWS_BATCH_BYTES_MAX
assert JOINING_ROWS_MAX < ROWS_COUNTED_MAX
assert LEASE_TIMEOUT_S < HANDLER_TIMEOUT_S
assert LEASES_AHEAD_MAX < LEASES_MAX
assert KEEPALIVE_S * 2 < SESSION_LEASE_S
