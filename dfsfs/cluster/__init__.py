"""Floor 3: many nodes, one file system. Membership, exchange of rows, copies of blocks."""

from dfsfs.cluster.cluster import Cluster, ClusterSettings
from dfsfs.cluster.members import Member, MemberTable

__all__ = ["Cluster", "ClusterSettings", "Member", "MemberTable"]
