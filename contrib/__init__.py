"""Programs around dfsfs: demo, benchmark, set-up. Not part of the package."""
