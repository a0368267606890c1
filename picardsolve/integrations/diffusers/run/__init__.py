"""One pass of a pipeline's loop: which iteration is a round, which one a replay, and what the denoiser is asked."""
