"""The schema of a namespace database, kept as commented SQL beside this module."""

from importlib.resources import files

SCHEMA_VERSION = 1
SCHEMA = files("dfsfs.namespace").joinpath("schema.sql").read_text("utf-8")
