//go:build race

package bridge_test

// defaultSeeds is smaller here: the race detector makes a seed ten times as slow.
const defaultSeeds = 150
