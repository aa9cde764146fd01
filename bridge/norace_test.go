//go:build !race

package bridge_test

// defaultSeeds and fleetSeedsByDefault are how many seeds the simulations run if they are not told; longCourses says
// whether tables have courses that go over hours or megabytes. Tests that do as a whole are
// in long_courses_test.go.
const (
	defaultSeeds        = 2000
	fleetSeedsByDefault = 25
	longCourses         = true
)
