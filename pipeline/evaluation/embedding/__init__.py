"""Features of a whole data set by a trained encoder, as one parquet file: streamed, on any number of ranks, resumable.

In: an encoder, a data set. Out: OUT.parquet with one row a sample. The samples are cut into units by their ids alone; a unit becomes a part
file of its own, whole or not at all, and the same one whoever makes it. `pipeline.evaluation.embed` puts the modules together.

settings       settings of the program (EmbedConfig, parse)
units          the units that the samples are cut into (Unit, cut_units)
reading        a unit's bytes, keys and labels, read from the shards in their order (SequentialReader)
pictures       the middle of each picture, at the encoder's scale (PictureCutter)
network        the features of a batch (Extractor)
flow           reading, decoding and the network at the same time (Flow)
part_folder    parts that are there, claims on those that are not (PartFolder)
table          the columns, and the parquet files of parts and of the whole

Nothing is imported here: only `table` needs pyarrow (the extra `embed`).
"""
