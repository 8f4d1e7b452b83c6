"""Probes: made sequences that ask for one ability each. One file a probe; what all share is in
`probe`. Loads no torch."""
