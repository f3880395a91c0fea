"""The operator's face: what commands may ask a running node, and how they reach it.

A node serves `Operator` on a socket in its state directory; commands of the same user (or root)
connect to it. Neither prints; neither knows `Node`.
"""
