//go:build !race

package poller

func spoil([]Event) {}
