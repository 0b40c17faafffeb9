"""From samples to their bytes, wherever the shards lie.

In: shards of a data set and rows of their indexes. Out: bytes that are proven to be those that were stored. `samples.SampleReader` chooses
between the node's cache (`cache.ShardCache`) and the store (`storage.ResumingReader`, over `s3` for S3); `fetch.Fetcher` asks the store
ahead; `retries` names the causes of failed requests.
"""
