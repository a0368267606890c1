"""A scheduler's steps ahead of the pipeline: by a table where a step is linear, else by copies of the scheduler."""
