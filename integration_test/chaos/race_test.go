//go:build race

package chaos_test

// The race detector makes everything several times slower, and four nats-servers with it.
const (
	raceDetector = true
	defaultKills = 24
)
