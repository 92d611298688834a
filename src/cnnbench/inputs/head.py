"""Fit a network's last layer to labelled images: what gives seeded weights an accuracy to be measured."""

import numpy as np

CLASSES = 1001
"""What a labelled image set tells apart: ImageNet's classes, 1 to 1000, and the background, 0."""


def fit_head(features: np.ndarray, labels: np.ndarray, ridge: float = 2e-2) -> tuple[np.ndarray, np.ndarray]:
    """Fit the dense layer by ridge regression of one-hot labels on standardised features, in closed form.

    `features`: float32, N x 2048; `labels`: int, N, 1 to 1000. Returns a kernel (2048 x 1001) and a bias (1001). The
    regression's outputs lie around 0 and 1; they are scaled to logits so that a sure answer has a softmax near 1.
    Classes that no image has get a logit far below all others.
    """
    logit_scale, never = 12.0, -20.0
    x = features.astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
    x = (x - mean) / deviation
    present = np.unique(labels)
    targets = (labels[:, None] == present[None, :]).astype(np.float64)
    target_mean = targets.mean(axis=0)
    gram = x @ x.T  # N x N: there are fewer images than features, so the dual form is the small one
    dual = np.linalg.solve(gram + ridge * np.trace(gram) / len(x) * np.eye(len(x)), targets - target_mean)
    fitted = (x.T @ dual) / deviation[:, None]
    kernel = np.zeros((features.shape[1], CLASSES))
    bias = np.full(CLASSES, never)
    kernel[:, present] = logit_scale * fitted
    bias[present] = logit_scale * (target_mean - mean @ fitted)
    return kernel.astype(np.float32), bias.astype(np.float32)
