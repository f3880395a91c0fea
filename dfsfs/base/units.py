"""Byte and time units. Nothing else lives here."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

NS_PER_S = 1_000_000_000
US_PER_S = 1_000_000
