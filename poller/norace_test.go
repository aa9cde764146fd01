//go:build !race

package poller

import "time"

// The pace is measured for longRun, with each set of rules.
const (
	longRun = time.Hour
	oneIn   = 1
)
