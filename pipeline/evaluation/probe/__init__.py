"""Probe of an encoder: a judgement of its frozen features by simple classifiers, beside its random start and beside plain colour.

In: an encoder, and pictures with labels. Out: accuracies with intervals, verdicts, and the sentences that a person reads.

probe             the whole of it (probe, ProbeSettings, ProbeResult)
pictures          labelled pictures, and batches of them (LabelledPictures, DatasetPictures, ProbeError)
features          features of every layer, pooled, in files (extracted)
table             such a file, and its standardised rows (FeatureTable, Standardised)
folds             the divisions of the pictures (stratified_folds, inner_folds)
cross_validation  every classifier on every fold (Protocol, Judged)
coordinates       the same inner products in fewer numbers (coordinates)
ridge, logistic, neighbours   the classifiers
choice            choices that are made on the training folds alone
intervals         intervals of accuracies and of paired differences
verdict           better, worse, or too few pictures to tell
report            the result as plain values and as text (as_mapping, as_text)

Nothing is imported here, because scikit-learn, the extra `evaluate`, is needed by the probe alone.
"""
