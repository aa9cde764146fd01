package bridge_test

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// Each loop that asks somebody anything has a least pause, whatever the answer is.
// TestRequestsAreFew has the loops of a bridge at work; these are the others.
func TestLoopsHaveALeastPause(t *testing.T) {
	const within = 100 * time.Second
	t.Run("a stream that cannot be opened", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			var opened atomic.Int32
			w.configure = func(c *bridge.Config) {
				c.Open = func(context.Context) (bridge.Stream, error) {
					opened.Add(1)
					return nil, &stream.Error{Kind: stream.Unavailable, Err: context.DeadlineExceeded}
				}
			}
			one.start()
			time.Sleep(within)
			if n := opened.Load(); n < 30 || n > 150 {
				t.Errorf("opened %d times in %v", n, within)
			}
			one.kill()
		})
	})
	for _, c := range []struct {
		name  string
		on    zulipsim.Kind
		begin func(*world)
		most  int
	}{
		{"a register that is refused behind a loss", zulipsim.Register, (*world).expire, 30},
		{"polls that are refused for another reason", zulipsim.Events, func(w *world) { w.say(1) }, 110},
	} {
		t.Run(c.name, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				one.follows(3)
				w.zulip.Fault(zulipsim.Fault{On: c.on, Status: http.StatusBadRequest,
					Body: `{"result":"error","msg":"no","code":"BAD_REQUEST"}`})
				before := len(w.zulip.Requests())
				c.begin(w)
				time.Sleep(within)
				if n := len(w.zulip.Requests()) - before; n < 3 || n > c.most {
					t.Errorf("%d requests to Zulip in %v, want some, and at most %d", n, within, c.most)
				}
				one.kill()
			})
		})
	}
	t.Run("a standby that clears what it left", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			l := w.recordWaits(one, stream.Unclear)
			time.Sleep(2 * time.Second)
			l.end()
			time.Sleep(time.Second)
			before := w.jet.Requests("last")
			time.Sleep(within)
			if n := w.jet.Requests("last") - before; n < 5 || n > 11 {
				t.Errorf("read %d times in %v, want each ten seconds", n, within)
			}
			w.jet.SetFaults(nil)
		})
	})
}

// logged lets the instances started from now on write their log there.
func (w *world) logged() func() string {
	var mu sync.Mutex
	var log bytes.Buffer
	write := writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	})
	w.configure = func(c *bridge.Config) { c.Log = zerolog.New(write) }
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return log.String()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A write that NATS refuses is in the log: the first, each change of the reason, and
// every ten minutes how many there were.
func TestRefusedWritesAreLogged(t *testing.T) {
	story(t, func(w *world, one *instance) {
		log := w.logged()
		one.follows(3)
		var refuse atomic.Bool
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" && refuse.Swap(false) {
				f.Fail = stream.Refused
			}
			return f
		})
		for range 30 {
			refuse.Store(true)
			w.say(1)
			time.Sleep(30 * time.Second)
		}
		if n := strings.Count(log(), "NATS refused a write"); n != 2 {
			t.Errorf("%d lines about 30 refused writes in 15 minutes, want 2:\n%s", n, log())
		}
		if !strings.Contains(log(), `"others_since":`) {
			t.Error("no line says how many there were")
		}
	})
}

// Thousands of events that cannot be carried are two lines a minute at most.
func TestRejectionsAreLoggedSeldom(t *testing.T) {
	story(t, func(w *world, one *instance) {
		log := w.logged()
		one.follows(3)
		for range 500 {
			w.zulip.Emit(map[string]any{"type": "a.b"})
		}
		time.Sleep(3 * time.Minute)
		w.say(1)
		time.Sleep(3 * time.Minute)
		first, more := strings.Count(log(), "an event cannot be carried"),
			strings.Count(log(), "further events could not be carried")
		if first != 1 || more != 1 || !strings.Contains(log(), `"events":499`) {
			t.Errorf("%d lines about one event, %d about further ones; want one each, and their count:\n%s", first,
				more, log())
		}
	})
}
