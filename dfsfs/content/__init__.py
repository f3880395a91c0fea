"""dfsfs.content"""
