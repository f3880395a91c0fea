"""Floor 5: the kernel face, a thin layer of pyfuse3 over `vfs`. The only importer of pyfuse3."""

from dfsfs.fuse.serve import serve

__all__ = ["serve"]
