"""Builds, indexes, verifies and inspects data sets of WebDataset shards.

In: pictures in a folder, a tar or a tar of tars, anywhere fsspec can read; or WebDataset tars of any program. Out: below one URL, `.tar`
shards that any WebDataset reader understands, an index beside each (24 bytes a sample) and `manifest.json`, the table of the shards.

The folders are stages: `build` and `adopt` make data sets, `check` verifies and shows them, `dataset` is all that training reads of one,
`tar` reads tars, `shapes` makes and reads the file with the shapes of masks. The files beside this one are what every stage may import:
stores, URLs, errors, counts, random numbers, whole files, locks.
"""
