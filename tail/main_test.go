package tail

import (
	"os"
	"testing"

	"zulip-nats/stream/natstest"
)

func TestMain(m *testing.M) {
	natstest.Main()
	os.Exit(m.Run())
}
