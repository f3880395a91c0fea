#!/usr/bin/env python3
"""`dfs-mount` from a checkout: the same program, run by the checkout's own environment."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    python = here / ".venv" / "bin" / "python"
    if Path(sys.prefix) != python.parent.parent and python.exists():
        os.execv(python, [str(python), __file__, *sys.argv[1:]])
    if sys.prefix == sys.base_prefix and not python.exists():
        sys.exit(f"dfsfs is not set up; run this once: make -C {here} install")
    from dfsfs.cli.mount import main

    main()
