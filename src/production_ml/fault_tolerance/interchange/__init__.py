"""The way to other formats and back: safetensors, torch.save and DCP, as files and as an API."""
