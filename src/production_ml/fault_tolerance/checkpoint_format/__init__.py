"""The checkpoint on disk: safetensors shards, and a manifest with a hash of every byte of them that is the commit."""

from production_ml.fault_tolerance.checkpoint_format.base import CheckpointInfo, CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry, FileEntry, Manifest, TensorEntry
from production_ml.fault_tolerance.checkpoint_format.verification import Damage, verify_checkpoint

__all__ = [
    "CheckpointDirectory",
    "CheckpointInfo",
    "CheckpointPlace",
    "ChunkEntry",
    "Damage",
    "FileEntry",
    "Manifest",
    "TensorEntry",
    "verify_checkpoint",
]
