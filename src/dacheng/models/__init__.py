"""Networks assembled from nn."""
