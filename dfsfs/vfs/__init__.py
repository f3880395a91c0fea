"""dfsfs.vfs"""
