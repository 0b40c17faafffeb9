"""A finished data set, and all that training needs to read one: the only folder of stages that the pipeline imports, besides `tar`.

In: `manifest.json` and the index of a shard. Out: `manifest.Manifest` (shards, sample ids, fingerprint) and `index.ShardIndex` (offset,
length, digest and label of every sample). `jpeg_header` reads and writes the table by which a part of a JPEG is decoded, `pixels` turns
any picture that can be read into RGB, `orientation` turns it upright, and `workplace` is the folder of an unfinished data set, which
`build`, `adopt` and `check` share.
"""
