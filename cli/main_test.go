package cli

import (
	"context"
	"os"
	"testing"
)

// The demo starts its own program again for each bridge: that is the test binary here. A
// test starts the demo itself in this way.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == demoBridgeName || os.Args[1] == "demo") {
		os.Exit(Run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}
