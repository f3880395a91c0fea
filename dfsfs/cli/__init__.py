"""The command line: argv, environment, exit codes and everything that is printed.

`dfs-mount` (`dfsfs.cli.mount`) and `dfs` (`dfsfs.cli.dfs`). Nothing else in the house prints, exits
or reads the environment. `dfs --help` answers before trio is imported: the parts of a node are
imported inside the commands that need them.
"""
