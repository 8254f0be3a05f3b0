"""What a training loop is made of beside the model: the order of its data, how it is spread, when it ends."""
