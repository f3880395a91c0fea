"""dfsfs.cluster"""
