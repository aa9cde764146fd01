//go:build !race

package bridge_test

// defaultSeeds is how many seeds the simulation runs if it is not told; longCourses says
// whether tables have courses that go over hours or megabytes. Tests that do as a whole are
// in long_courses_test.go.
const (
	defaultSeeds = 2000
	longCourses  = true
)
