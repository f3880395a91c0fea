"""dfsfs.blocks"""
