"""How a checkpoint comes back: every byte verified, the newest good step agreed by all ranks, the rest explained."""
