"""dfsfs.net"""
