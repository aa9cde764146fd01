//go:build race

package bridge_test

// The race detector makes everything ten times as slow: fewer seeds, and of courses that
// go over hours or megabytes the shorter ones.
const (
	defaultSeeds        = 40
	fleetSeedsByDefault = 2
	longCourses         = false
)
