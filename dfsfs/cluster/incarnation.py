"""The origin numbers of a node: one for each incarnation of its state directory.

A number comes from the node's key and a drawn one, so nobody hands it out; one that another member
has, or that was ever used, is passed over. It is drawn, not counted, because who comes from a
backup does not know of the incarnations that followed it. What was drawn is kept with the members.
"""

import hashlib
import random
from collections.abc import Collection

from dfsfs.base.types import ORIGIN_MAX, Origin
from dfsfs.cluster.members import MemberTable

FACT = "incarnation"
_BITS = 31


def present_origin(members: MemberTable) -> Origin:
    """This incarnation's number; another incarnation if some other member has it."""
    incarnation = _count(members)
    while not _is_free(members, origin := _number(members, incarnation)):
        incarnation += 1
    if incarnation != _count(members):
        members.set_fact(FACT, b"%d" % incarnation)
    return origin


def take_another(members: MemberTable, used: Collection[Origin], dice: random.Random) -> None:
    """From the next start on be another incarnation than any whose rows were seen."""
    while _number(members, incarnation := dice.getrandbits(_BITS)) in used:
        pass
    members.set_fact(FACT, b"%d" % incarnation)


def _count(members: MemberTable) -> int:
    return int(members.fact(FACT) or b"0")


def _is_free(members: MemberTable, origin: Origin) -> bool:
    return origin != 0 and not any(
        member.origin == origin and member.node != members.own for member in members.all()
    )


def _number(members: MemberTable, incarnation: int) -> Origin:
    seed = members.own + incarnation.to_bytes(4, "big")
    return Origin(int.from_bytes(hashlib.sha256(seed).digest()[:3], "big") & ORIGIN_MAX)
