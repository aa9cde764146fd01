//go:build !race

package tail

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/stream/natstest"
)

// TestFlatMemory reads a long stream, half of it reactions, and compares what is held at a
// quarter of it with what is held at its end. The server is another process.
func TestFlatMemory(t *testing.T) {
	const all = 202_000
	p := natstest.StartProcess(t, "")
	b := newBus(t, p.JetStream())
	text := strings.Repeat("some text ", 30)
	for i := int64(1); i <= all/2; i++ {
		for _, m := range []struct{ typ, body string }{
			{"message", said(i, fmt.Sprint("channel ", i), fmt.Sprint("topic ", i), fmt.Sprint("sender ", i), text)},
			{"reaction", reaction("add", i-i%10)},
		} {
			if _, err := b.js.PublishMsgAsync(b.msg(m.typ, m.body)); err != nil {
				t.Fatal(err)
			}
		}
		if i%2000 == 0 {
			<-b.js.PublishAsyncComplete()
		}
	}
	<-b.js.PublishAsyncComplete()
	held := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	n, early, late := 0, uint64(0), uint64(0)
	begin := time.Now()
	err := Run(t.Context(), Options{JetStream: b.js, Stream: "ZULIP_acme", Realm: "acme", From: 1, NoFollow: true,
		Show: &Pretty{W: io.Discard, Width: 80}, Seen: func(*events.Event) {
			switch n++; n {
			case 50_000:
				early = held()
			case 200_000:
				late = held()
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	if n != all {
		t.Errorf("it read %d of %d", n, all)
	}
	// The client's buffer of messages under way is more or less full at a time.
	if late > early+8<<20 {
		t.Errorf("%d bytes are held at 50,000 events, %d at 200,000", early, late)
	}
	t.Logf("%d events in %v; %d KiB held at 50,000, %d KiB at 200,000", n, time.Since(begin).Round(time.Millisecond),
		early>>10, late>>10)
	b.alone()
}
