"""One queue before the model: the inference server, its batcher, its traffic split, its runtimes."""
