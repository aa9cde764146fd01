package bridge

import (
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"zulip-nats/events"
)

// FuzzHeaderValue: whatever a type or an op holds, what a consumer reads is what was
// sent, one line of printable ASCII, and decodes to the beginning of the word.
func FuzzHeaderValue(f *testing.F) {
	for _, s := range []string{"message", "", "a b", "new\r\nZulip-Queue-Id: forged", "é💥", "100%", "%41", "\x00\xff",
		strings.Repeat("é", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v := headerValue(s)
		if len(v) > headerValueLimit {
			t.Fatalf("%q became %d bytes", s, len(v))
		}
		var wire strings.Builder
		wire.WriteString("NATS/1.0\r\n")
		if v != "" {
			wire.WriteString(events.HeaderEventType + ": " + v + "\r\n")
		}
		wire.WriteString("\r\n")
		h, err := nats.DecodeHeadersMsg([]byte(wire.String()))
		if err != nil {
			t.Fatalf("%q became %q, which NATS does not read: %v", s, v, err)
		}
		if got := h[events.HeaderEventType]; v != "" && (len(h) != 1 || len(got) != 1 || got[0] != v) ||
			v == "" && len(h) != 0 {
			t.Fatalf("%q was sent as %q and read as %q", s, v, h)
		}
		back, err := url.PathUnescape(v)
		if err != nil || !strings.HasPrefix(s, back) || len(s) <= headerValueLimit/3 && back != s {
			t.Fatalf("%q became %q, which decodes to %q (%v)", s, v, back, err)
		}
	})
}
