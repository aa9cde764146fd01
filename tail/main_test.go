package tail

import (
	"os"
	"testing"
	"time"

	"zulip-nats/stream/natstest"
)

func TestMain(m *testing.M) {
	natstest.Main()
	// What is not answered in time is shown without, or not at all. But a question that was
	// lost with a connection has to be asked again while a test still waits.
	askTime, searchTime = 30*time.Second, 30*time.Second
	os.Exit(m.Run())
}
