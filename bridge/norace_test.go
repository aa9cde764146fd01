//go:build !race

package bridge_test

// defaultSeeds is how many seeds the simulation runs if it is not told.
const defaultSeeds = 2000
