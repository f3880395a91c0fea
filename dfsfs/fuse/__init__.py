"""dfsfs.fuse"""
