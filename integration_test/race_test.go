//go:build race

package integration_test

// The race detector makes everything several times slower.
const (
	raceDetector = true
	defaultKills = 25
)
