"""dfsfs.wire"""
