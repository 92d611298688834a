"""PyTorch, eager or compiled by Inductor, on CPUs and GPUs; builds the networks of all engines that take them."""
