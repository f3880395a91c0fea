"""dfsfs.testing"""
