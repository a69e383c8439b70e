"""Distillation: a smaller network learns from a larger one. `student` picks its layers, `classifier` trains encoders,
`decoder` trains decoders on texts, `on_policy` on what the student itself writes, `sequence` lets the teacher write."""
