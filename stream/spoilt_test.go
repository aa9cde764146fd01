package stream_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
)

// A chunk's bytes are the source's again when the next one is asked for, whether there is
// one or not: on no path is anything read of them then.
func TestChunkThatIsOverwritten(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, _ jetstream.JetStream) {
		for _, sizes := range manySizes[:6] {
			for _, open := range []bool{false, true} {
				at := acked(t, s)
				body := func(n int) []byte { return fmt.Appendf(nil, "%v %v body %d", sizes, open, n) }
				var old []stream.Message
				source, n := chunks(sizes, open, nil), 0
				end, err := s.AppendEach(t.Context(), at, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
					for i := range old {
						clear(old[i].Data)
						clear(old[i].Headers)
					}
					msgs, more := source(stored, at)
					for i := range msgs {
						n++
						msgs[i].Data = body(n)
					}
					old = msgs
					return msgs, more
				})
				if err != nil {
					t.Fatal(err)
				}
				for i := 1; i <= sum(sizes); i++ {
					m, err := s.At(t.Context(), at.Seq+uint64(i))
					if err != nil || m == nil || !bytes.Equal(m.Data, body(i)) || eventID(m) != ids(i, 1)[0] {
						t.Fatalf("%v: message %d of %d is %v (%v)", sizes, i, end.Seq-at.Seq, m, err)
					}
				}
			}
		}
	})
}
