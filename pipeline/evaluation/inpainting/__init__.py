"""Table 1: what a trained network paints into holes, beside fills that need no network, on the same pictures and masks.

In: a run, and a data set of pictures that it was not trained on. Out: one table of errors with intervals, as text, CSV and JSON, and a
grid with a column for each method.

settings            settings of the command (InpaintingConfig, parse)
work                the work of one rank, which puts the modules together (evaluate)
inputs              the run's painter, the pictures to judge on, the pictures whose patches are pasted (open_inputs)
training_pictures   the latter, one after the other or by id (TrainingPictures)
method              the interface of everything that fills holes (Holes, Method)
fills/              the fills that a network is compared with
judging             pictures with holes, filled by every method, and the figures of the fills (Judge)
metrics             L1, L2, PSNR and SSIM of a fill (Truth)
lpips               LPIPS from a file of weights (Lpips)
search              the nearest training picture of every picture, part by part (Search)
phases              units of work on all ranks and several threads (Phase)
parts               the part files of units
output, table, grid   the files of the table, its rows and lines, its pictures

Nothing is imported here.
"""
