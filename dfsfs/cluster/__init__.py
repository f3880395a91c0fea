"""Floor 3: many nodes, one file system. Membership, exchange of rows, copies of blocks."""

from dfsfs.cluster.cluster import Cluster
from dfsfs.cluster.gc import SCHEMA as GC_SCHEMA
from dfsfs.cluster.gc import SCHEMA_VERSION as GC_SCHEMA_VERSION
from dfsfs.cluster.members import NAMES_LOST, Member, MemberTable
from dfsfs.cluster.members import SCHEMA as MEMBERS_SCHEMA
from dfsfs.cluster.members import SCHEMA_VERSION as MEMBERS_SCHEMA_VERSION
from dfsfs.cluster.settings import ClusterSettings

__all__ = [
    "GC_SCHEMA",
    "GC_SCHEMA_VERSION",
    "MEMBERS_SCHEMA",
    "MEMBERS_SCHEMA_VERSION",
    "NAMES_LOST",
    "Cluster",
    "ClusterSettings",
    "Member",
    "MemberTable",
]
