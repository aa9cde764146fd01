//go:build race

package model

import "runtime"

// The race detector crashes now and then where two goroutines of a synctest bubble find at
// the same moment that a timer is due: in Go 1.26 they share its record of timers without a
// lock (golang/go#78156; runtime/time.go, unlockAndRun). A watch of this model waits for
// timers that are due at once, so its users run on one processor. The detector goes by the
// order of accesses, and finds races all the same.
func init() { runtime.GOMAXPROCS(1) }
