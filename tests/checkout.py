"""Where this repository and its workload are."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKLOAD = ROOT / "workload" / "ResNet50-TensorFlow-Xeon-Public"
NETWORKS_SLUG = "cnn_pytorch_public"
"""What the cases of the networks' workload have in their names."""
