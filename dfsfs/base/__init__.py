"""Floor 0: the words. Types, errors, limits, units and the codec; no I/O, no trio."""
