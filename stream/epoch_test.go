package stream_test

import (
	"testing"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// Behind a reconnect the cursor of a write is one of that connection, whatever the chunks:
// the next write needs no read.
func TestChunksBehindAReconnect(t *testing.T) {
	for _, path := range paths {
		t.Run(string(path), func(t *testing.T) {
			s, proxy, _ := behind(t, stream.Config{Path: path})
			acked(t, s)
			proxy.CutAll()
			natstest.Eventually(t, "a reconnect", func() bool { return s.Epoch() > 0 })
			for _, sizes := range [][]int{{1}, {2}, {1, 1}} {
				at := acked(t, s)
				end, err := s.AppendEach(t.Context(), at, chunks(sizes, true, nil))
				if err != nil {
					t.Fatal(err)
				}
				if end.Epoch != s.Epoch() {
					t.Errorf("%v: the write ended at %+v on connection %d", sizes, end, s.Epoch())
				}
				if _, err := s.Append(t.Context(), end, messages(9, 1)); err != nil {
					t.Errorf("%v: the next write: %v", sizes, err)
				}
			}
		})
	}
}
