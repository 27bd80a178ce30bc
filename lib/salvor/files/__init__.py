"""Trees and single files of a host: what stands beside them, restic, and the proof of a copy."""
