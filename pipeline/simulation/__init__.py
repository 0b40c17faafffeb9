"""A prediction of what a run will ask of its store, made before the run is started: `python launch/simulate.py`.

In: a data set (`stored`, or `made_up` where it does not exist yet) and a `Setup` of cluster, store and training. Out: a
`Prediction` of bytes and requests, the cache needed, the time to the first batch, the fraction of time that GPUs wait, the
shuffle's quality and the cost of preemptions. `measure` takes latency and bandwidth from the bucket itself. The order is the
real one (`pipeline.stream.order`) and the cache is replayed by its own rules; times are estimates.
"""

from pipeline.simulation.prediction import Prediction, simulate
from pipeline.simulation.probe import Measurement, measure
from pipeline.simulation.settings import Setup, SimulationError, Subject, made_up, stored

__all__ = ["Setup", "Subject", "SimulationError", "stored", "made_up", "simulate", "Prediction", "measure", "Measurement"]
