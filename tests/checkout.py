"""Where this repository and its workload are."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKLOAD = ROOT / "workload" / "ResNet50-TensorFlow-Xeon-Public"
