//go:build race

package poller

import "time"

// The race detector makes the pace ten times slower to measure: for longRun, and one in so
// many sets of rules.
const (
	longRun = 5 * time.Minute
	oneIn   = 100
)
