//go:build linux

package main

import (
	"bytes"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// old is a start on a stream that has become large: how long until the first poll.
//
// It is measured from before exec until the poll comes to Zulip. The stream has a tenth of
// ten million events (all of them with -full), which the program itself has stored. For
// the messages of others, a tenth of as many is published on the realm's subjects before
// each start, without headers and by nobody of ours, so where we are stands behind them.
// For R3 the stream's leader steps down right before the start; beside it stands how long
// it takes then until a leader reads the newest message for whoever asks again and again,
// each 5 ms. Nothing runs beside it but the servers.
func old(t *scope) {
	for _, kind := range []string{"R1 file", "R3 file"} {
		t.try(kind, func(t *scope) {
			s := newStore(t, kind)
			events := t.sized(1_000_000, 10_000_000)
			z := newZulip(t)
			more := []string{"--replicas", fmt.Sprint(s.replicas)}
			p := t.follow(z, s.url, "acme", more...)
			z.drained(events, made(100))
			p.stop()
			others := 0
			start := func() float64 {
				if others > 0 {
					s.foreign("zulip.acme.foreign", others)
				}
				if s.replicas > 1 {
					s.elect("ZULIP_acme")
				}
				polls := z.polls.Load()
				p := t.follow(z, s.url, "acme", more...)
				t.wait("the first poll", 200*time.Microsecond, func() bool { return z.polls.Load() > polls })
				took := milliseconds(time.Unix(0, z.polled.Load()).Sub(p.began))
				z.waiting()
				p.stop()
				return took
			}
			name := fmt.Sprintf("%d events, %s", events, kind)
			if s.replicas > 1 {
				name += ", just elected"
			}
			contestants := []func() float64{start}
			if s.replicas > 1 {
				contestants = append(contestants, func() float64 { return milliseconds(s.elect("ZULIP_acme").answered()) })
			}
			figures := t.byTurns(contestants...)
			t.report(compared("old", name, "exec to the first poll", "ms", figures[0], "", nil, atMost(1000)))
			if s.replicas > 1 {
				t.report(compared("old", name, "exec to the first poll", "ms", figures[0], "a leader reads", figures[1], nil))
			} else {
				others = max(1, events/10)
				figures = t.byTurns(start)
				t.report(compared("old", fmt.Sprintf("%s, behind %d of others", name, others), "exec to the first poll", "ms",
					figures[0], "", nil, atMost(2000)))
			}
		})
	}
}

// election is a stream without its leader.
type election struct {
	*store
	stream string
	began  time.Time
}

// elect lets a stream's leader step down.
func (s *store) elect(stream string) election {
	s.t.wait("the leader to step down", 20*time.Millisecond, func() bool {
		answer, err := s.nc.Request("$JS.API.STREAM.LEADER.STEPDOWN."+stream, nil, time.Second)
		return err == nil && bytes.Contains(answer.Data, []byte(`"success":true`))
	})
	return election{s, stream, time.Now()}
}

// answered says after what time the newest message can be read.
func (e election) answered() time.Duration {
	e.t.wait("a leader", 5*time.Millisecond, func() bool {
		answer, err := e.nc.Request("$JS.API.STREAM.MSG.GET."+e.stream, []byte(`{"last_by_subj":"zulip.acme.>"}`), 250*time.Millisecond)
		return err == nil && bytes.Contains(answer.Data, []byte(`"message"`))
	})
	return time.Since(e.began)
}

// foreign publishes messages that are not ours.
func (s *store) foreign(subject string, n int) {
	t := s.t
	body := made(100)(nil, 1)
	js, err := jetstream.New(s.nc, jetstream.WithPublishAsyncMaxPending(1000))
	t.must(err)
	for range n {
		_, err := js.PublishAsync(subject, body, jetstream.WithStallWait(time.Minute))
		t.must(err)
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-t.Context().Done():
		t.Fatal("interrupted")
	}
}
