"""Use of a trained encoder: written to files that others read, loaded back, described.

In: a run folder, or the URL of its checkpoints. Out: an encoder as safetensors, as a folder with a model card, or as ONNX; and back as a
module with its transform; features of a whole data set. Stands above `pipeline.training`, which knows nothing of it.

encoder        a trained encoder as a module with named layers (load_encoder, layers, layer_outputs, random_start)
facts          all that a user must know of an encoder: its layers, input, training and scores (EncoderFacts, Transform)
architecture   the chain of layers as plain values, which plain torch builds again (described, built)
of_run         the encoder of a checkpoint, with its facts (trained_encoder)
export         the files of an encoder (export_encoder)
onnx_file      an encoder as one ONNX file, checked by onnxruntime (onnx_bytes)
model_card     the README.md beside an exported encoder (model_card)
part_folder    the part files that ranks make of one output without word from each other (PartFolder)
rank           this process among those of a launcher (Rank)
painter        a trained painter, which fills holes (read_painter)
inpainting/    table 1: the errors of its fills beside those of other methods
embed          features of a whole data set, by one rank of many (embed)
embedding/     the parts of `embed`: units of work, reading, network, part files

Nothing is imported here, so that a program that only wants one of these loads no other.
"""
