"""Floor 3: many nodes, one file system. Membership, exchange of rows, copies of blocks."""

from dfsfs.cluster.cluster import Cluster
from dfsfs.cluster.members import Member, MemberTable
from dfsfs.cluster.settings import ClusterSettings

__all__ = ["Cluster", "ClusterSettings", "Member", "MemberTable"]
