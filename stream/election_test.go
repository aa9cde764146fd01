package stream_test

import (
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// The leader goes in the middle of a write: what the source is told to be stored stays, and
// what stands is the beginning of what was given, each once.
func TestElectionBetweenChunks(t *testing.T) {
	c := natstest.StartCluster(t, 3)
	nc := connect(t, c.URL())
	s := open(t, nc, stream.Config{Path: stream.PathFast, New: stream.NewStream{Replicas: 3}})
	for range 3 {
		cursor := acked(t, s)
		before := len(contents(t, s))
		source, asked, told := chunks([]int{900, 900, 900, 900, 900, 900}, true, nil), 0, 0
		_, err := s.AppendEach(t.Context(), cursor, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
			if told = stored; asked == 2 {
				_, _ = nc.Ask(t.Context(), "step down", &nats.Msg{Subject: "$JS.API.STREAM.LEADER.STEPDOWN." + s.Name()}, 5*time.Second)
			}
			asked++
			return source(stored, at)
		})
		got := contents(t, s)[before:]
		t.Logf("told of %d, %d stand, %v", told, len(got), err)
		if len(got) < told || !slices.Equal(got, ids(1, len(got))) || err == nil && len(got) != 5400 {
			t.Errorf("told of %d, %d stand, %v", told, len(got), err)
		}
	}
}
