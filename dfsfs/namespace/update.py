"""One change of the replica: rows join, the view settles, all within one SQLite transaction."""

from collections.abc import Sequence

from dfsfs.namespace.fallbacks import note_renames
from dfsfs.namespace.join import join_row, settle_times
from dfsfs.namespace.liveness import settle_liveness
from dfsfs.namespace.rows import Row
from dfsfs.namespace.slots import settle_names
from dfsfs.namespace.working import WorkingSet


def join_rows(work: WorkingSet, rows: Sequence[Row]) -> None:
    """Join rows and settle everything they touch. May be called several times on one set.

    Raises:
        RemoteProtocolError: a row contradicts what is immutable; the transaction must be undone.
    """
    for row in rows:
        join_row(work, row)
    note_renames(work, rows)
    settle_liveness(work)
    for inode in work.arrived:  # a conflict copy that became a file of its own
        original = work.database.value("SELECT original FROM copy WHERE inode=?", (inode,))
        if original is not None:
            work.copies[original] = None
            work.contents[inode] = None  # its content row may come later
    settle_names(work)
    settle_times(work)
    work.flush_inodes()
    work.forget_touched()
