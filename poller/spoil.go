//go:build !race

package poller

// spoil does nothing but under the race detector.
func spoil([]Event) {}
