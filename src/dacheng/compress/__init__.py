"""Compression: calibrate, quantize, prune, distil, merge; each judged by bytes, quality and speed."""
