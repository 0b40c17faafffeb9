"""Shapes to paste as masks: outlines of unit area, generated, or traced from a segmentation data set into one small file, the bank.

In: label pictures, whose pixels are numbers of objects, anywhere fsspec can read. Out: a bank, which `bank.read_bank` reads from any URL
and proves by its digest, and of which the pipeline makes masks.

Public names: `silhouette.Silhouette`, `silhouette.generated_silhouettes`; `bank.ShapeBank`, `bank.Provenance`, `bank.read_bank`,
`bank.write_bank`.
"""
