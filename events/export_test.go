package events

import (
	"testing"
	"time"
)

// SetResolveTime sets how long an object is waited for, until the end of a test.
func SetResolveTime(t *testing.T, d time.Duration) {
	before := resolveTime
	resolveTime = d
	t.Cleanup(func() { resolveTime = before })
}
