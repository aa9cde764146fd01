package stream_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// follow brings messages 1 to total into the stream, as the bridge does: what the newest
// message says is where we are, every error is settled by reading, and nothing else is
// remembered. at is told how far it came, and may keep it waiting.
func follow(ctx context.Context, s *stream.Stream, total, chunk int, at func(position int), token string) error {
	for ctx.Err() == nil {
		epoch := s.Epoch()
		cursor, newest, err := s.Last(ctx)
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		position := 0
		if newest != nil {
			if position, err = strconv.Atoi(eventID(newest)); err != nil {
				return err
			}
		}
		for epoch == s.Epoch() {
			at(position)
			if position == total {
				return nil
			}
			n := min(1+rand.N(chunk), total-position)
			if cursor, err = s.Append(ctx, cursor, on(token, messages(position+1, n))); err != nil {
				if kindOf(err) == stream.Refused {
					time.Sleep(10 * time.Millisecond)
				}
				break
			}
			position += n
		}
	}
	return context.Cause(ctx)
}

// highest keeps the greatest position that it was told.
func highest(at *atomic.Int64) func(int) {
	return func(position int) { at.Store(max(at.Load(), int64(position))) }
}

// A server is killed again and again while messages go in. The writer tells when it has
// come so far, and goes on at once; before the next kill it waits for whoever kills, who
// may be the slower of the two by far.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	for _, path := range paths {
		t.Run(string(path), func(t *testing.T) {
			p := natstest.StartProcess(t, "")
			nc := connect(t, p.URL)
			s := open(t, nc, stream.Config{Path: path})
			const total, kills = 5_000, 4
			ctx := withTimeout(t, 2*time.Minute)
			kill, done := make(chan struct{}), make(chan error, 1)
			killed := 0
			at := func(position int) {
				if killed < kills && position > killed*total/(kills+1) {
					select {
					case kill <- struct{}{}:
						killed++
					case <-ctx.Done():
					}
				}
			}
			go func() { done <- follow(ctx, s, total, 100, at, "zulip") }()
			for n := range kills {
				select {
				case <-kill:
				case err := <-done:
					t.Fatalf("it ended after %d kills: %v", n, err)
				}
				p.Kill()
				p.Start()
				natstest.Eventually(t, "the reconnect", func() bool {
					if !nc.IsConnected() {
						_ = nc.ForceReconnect()
					}
					return nc.IsConnected()
				})
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got := contents(t, s); !slices.Equal(got, ids(1, total)) {
				t.Fatalf("after %d kills the stream holds %d messages, not the %d that were given", kills,
					len(got), total)
			}
		})
	}
}

// Two writers that know nothing of each other do the same work.
func TestTwoWriters(t *testing.T) {
	for _, pair := range [][2]stream.Path{
		{stream.PathFast, stream.PathFast}, {stream.PathFast, stream.PathAtomic}, {stream.PathAtomic, stream.PathSync},
		{stream.PathSync, stream.PathFast},
	} {
		t.Run(fmt.Sprintf("%s and %s", pair[0], pair[1]), func(t *testing.T) {
			srv := natstest.Start(t)
			const total = 800
			var writing sync.WaitGroup
			ctx := withTimeout(t, 2*time.Minute)
			var streams []*stream.Stream
			for _, path := range pair {
				s := open(t, connect(t, srv.URL), stream.Config{Path: path})
				streams = append(streams, s)
				writing.Go(func() {
					var at atomic.Int64
					if err := followWithStepDown(ctx, s, total, &at); err != nil {
						t.Error(err)
					}
				})
			}
			writing.Wait()
			if got := contents(t, streams[0]); !slices.Equal(got, ids(1, total)) {
				t.Fatalf("the stream holds %d messages, not the %d that were given", len(got), total)
			}
		})
	}
}

// followWithStepDown is follow, with a step down when a chunk is refused twice while the
// stream stands still.
func followWithStepDown(ctx context.Context, s *stream.Stream, total int, at *atomic.Int64) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watching.Go(func() {
		for ctx.Err() == nil {
			before := at.Load()
			time.Sleep(200 * time.Millisecond)
			if at.Load() == before {
				s.StepDown()
			}
		}
	})
	return follow(ctx, s, total, 40, highest(at), "zulip")
}

// Three servers, three replicas: the leadership of the stream changes hands while
// messages go in, and at the end its server stops.
func TestReplicatedStream(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	nc := connect(t, c.URL())
	for i, path := range paths {
		name := "S" + string(path)
		s := open(t, nc, stream.Config{Filter: string(path) + ".acme.>", Name: name, Path: path,
			AckTimeout: time.Second,
			New:        stream.NewStream{Replicas: 3}})
		if w := slices.Concat(s.Warnings(), s.Usual()); len(w) != 0 {
			t.Errorf("three replicas get the warnings %q", w)
		}
		info, err := s.Info(t.Context())
		if err != nil || info.Leader == "" {
			t.Fatalf("the leader is %q (%v)", info.Leader, err)
		}
		const total = 3000
		var at atomic.Int64
		ctx := withTimeout(t, 2*time.Minute)
		done := make(chan error, 1)
		go func() { done <- follow(ctx, s, total, 60, highest(&at), string(path)) }()
		for step := range 2 {
			natstest.Eventually(t, "some progress", func() bool { return at.Load() > int64(step+1)*total/4 || ctx.Err() != nil })
			if i == len(paths)-1 && step == 1 {
				c.StreamLeader(name).Restart()
				continue
			}
			c.StepDown(name)
		}
		if err := <-done; err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if got := contents(t, s); !slices.Equal(got, ids(1, total)) {
			t.Fatalf("%s: the stream holds %d messages, not the %d that were given", path, len(got), total)
		}
	}
}

// A cluster that has lost its majority stores nothing, says nothing, and stores later
// what it was given. What was read before that must not let the same messages in again:
// neither of the writer that gave up nor of another one.
func TestNoQuorum(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	// The server that stays leads the cluster: where the cluster lives for longer than ten
	// seconds, as on a slow machine, a server that knows no leader of it refuses to read. All
	// connections are to that server, and so a cursor outlives the others' end.
	stays := c.Leader()
	nc := connect(t, stays.URL)
	js := stays.JetStream()
	type realm struct {
		name      string
		first     *stream.Stream
		second    *stream.Stream
		cursor    stream.Cursor
		dedicated bool
	}
	var realms []*realm
	for _, r := range []struct {
		name string
		path stream.Path
	}{{"fast", stream.PathFast}, {"atomic", stream.PathAtomic}, {"sync", stream.PathSync}, {"s1", stream.PathAtomic},
		{"s2", stream.PathSync}} {
		dedicated := r.name[0] != 's' || r.name == "sync"
		subjects := []string{r.name + ".acme.>"}
		if !dedicated {
			subjects = []string{r.name + ".>"}
		}
		config := jetstream.StreamConfig{Name: r.name, Subjects: subjects, Replicas: 3, AllowAtomicPublish: true,
			AllowBatchPublish: true}
		natstest.CreateStream(t, js, config)
		cfg := stream.Config{Filter: r.name + ".acme.>", Name: r.name, Path: r.path}
		patient := open(t, nc, cfg)
		cfg.AckTimeout = time.Second
		now := &realm{name: r.name, first: open(t, nc, cfg), second: open(t, connect(t, stays.URL), cfg),
			dedicated: dedicated}
		var err error
		if now.cursor, err = patient.Append(t.Context(), stream.Cursor{}, on(r.name, messages(0, 1))); err != nil {
			t.Fatal(err)
		}
		realms = append(realms, now)
	}
	for leader := c.Leader(); leader != stays; leader = c.Leader() {
		leader.Restart() // another one was elected meanwhile
		c.WaitForLeader()
	}
	for _, r := range realms {
		c.MoveLeader(r.name, stays)
	}
	others := slices.DeleteFunc(slices.Clone(c), func(s *natstest.Server) bool { return s == stays })
	// Now all at the same time: a leader that has heard of no other server for ten seconds
	// gives up its place.
	var stopping sync.WaitGroup
	stopping.Go(others[0].Stop)
	stopping.Go(others[1].Stop)
	stopping.Wait()
	type outcome struct {
		cursor              stream.Cursor
		first, read, second error
	}
	outcomes := make([]outcome, len(realms))
	var writing sync.WaitGroup
	for i, r := range realms {
		writing.Go(func() {
			o := &outcomes[i]
			_, o.first = r.first.Append(t.Context(), r.cursor, on(r.name, messages(1, 3)))
			// The other instance reads what there is, which is the same as ever, and knows
			// no better than to do the same work.
			if o.cursor, _, o.read = r.second.Last(t.Context()); o.read == nil {
				_, o.second = r.second.Append(t.Context(), o.cursor, on(r.name, messages(1, 3)))
			}
		})
	}
	writing.Wait()
	for i, r := range realms {
		o := outcomes[i]
		want(t, o.first, stream.Unclear)
		if o.read != nil {
			t.Fatal(o.read)
		}
		if o.cursor.Seq != r.cursor.Seq {
			t.Fatalf("%s: stored without a majority: %+v", r.name, o.cursor)
		}
		want(t, o.second, stream.Refused)
	}
	others[0].Restart()
	others[1].Restart()
	for _, r := range realms {
		if err := follow(withTimeout(t, 2*time.Minute), r.second, 20, 10, func(int) {}, r.name); err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		if got := contents(t, r.second); !slices.Equal(got, ids(0, 21)) {
			t.Errorf("%s: the stream holds %v", r.name, got)
		}
	}
}

// on puts messages on another first token.
func on(token string, msgs []stream.Message) []stream.Message {
	for i := range msgs {
		msgs[i].Subject = token + strings.TrimPrefix(msgs[i].Subject, "zulip")
	}
	return msgs
}
