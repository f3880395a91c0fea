"""dfsfs.cli"""
