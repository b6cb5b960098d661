"""What ``bench/gpu.sh`` runs on a machine with a GPU: one module for each stage, which writes one JSON file."""
