"""Builds data sets: pictures of a source in, shards, indexes and a manifest out, the same to the byte for any number of processes.

`build.build` does it all: a source lists the pictures (`sources.open_source`), a plan cuts the list into tasks (`plan.Plan`), an executor
runs the tasks (`executor`), each task stores its pictures (`picture.prepare`) in one shard and commits it (`task.run_task`), and the
manifest is written last. `destination` knows what an earlier build left. Public names: `build.BuildRequest`, `build.BuildResult`,
`build.build`, `plan.PlanSettings`, `picture.PictureRules`.
"""
