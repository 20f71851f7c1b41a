"""The house rules as tests. Each failure names the remedy; each rule is shown to fail on a bad sample."""
