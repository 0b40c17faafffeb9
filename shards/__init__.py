"""Builds, indexes, verifies and inspects data sets of WebDataset shards.

In: pictures in a folder, a tar or a tar of tars, anywhere fsspec can read. Out: below one URL, `.tar` shards that any
WebDataset reader understands, an index beside each (24 bytes a sample) and `manifest.json`, which says what the data set is.
"""
