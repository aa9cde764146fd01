package integration_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// hangFor is longer than a lease of default length.
const hangFor = 7 * time.Second

// mark lets n messages and n other events happen, none of them like another.
func (w *world) mark(n int) {
	for range n {
		w.talking.Lock()
		w.marks++
		mark := w.marks
		w.talking.Unlock()
		w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "marks", Content: fmt.Sprintf("mark %d", mark)})
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": fmt.Sprintf("mark %d", mark)})
	}
}

// healed waits until the one queue that lives is the one that the stream names, with a
// poll that waits and nothing pending. A queue that the program made and nobody follows
// may live until then, and no longer.
func (w *world) healed() {
	w.t.Helper()
	wrong := ""
	if !harness.Within(harness.Patience, func() bool {
		wrong = harness.Stray(w.js, w.stream, w.realm, w.queues())
		return wrong == ""
	}) {
		w.t.Fatalf("after %v: %s", harness.Patience, wrong)
	}
}

// whole fails the test unless the stream holds all that Zulip did not lose, once, and
// tells of so many gaps, each closed unless its queue was given up in turn before its
// refill was done.
func (w *world) whole(gaps int) *findings {
	w.t.Helper()
	f := w.check().clean(w.t)
	w.everyMessage(f)
	for i, missing := range harness.Untold(w.queues(), f.all) {
		if i < 5 {
			w.t.Errorf("not stored, and no gap tells of it: %s", missing)
		}
	}
	closed, isOpen := gaps, false
	for i := range f.all {
		switch f.all[i].Record() {
		case "gap-opened":
			if isOpen {
				closed--
			}
			isOpen = true
		case "gap-closed":
			isOpen = false
		}
	}
	if f.records["gap-opened"] != gaps || f.records["gap-closed"] != closed {
		w.t.Errorf("%d gaps were opened and %d closed, want %d and %d", f.records["gap-opened"],
			f.records["gap-closed"], gaps, closed)
	}
	dead := map[string]string{}
	for _, q := range w.queues() {
		dead[q.ID] = q.Dead
	}
	for i := range f.all {
		m := &f.all[i]
		switch q := m.Get(events.HeaderQueueID); m.Record() {
		case "gap-opened":
			if !strings.Contains(body(w.t, m).Cause, "retired") && dead[q] != "expired" {
				w.t.Errorf("a gap is told of queue %s, which Zulip did not drop (it is %q): %v", q, dead[q], m)
			}
		case "queue":
			w.t.Logf("#%d %s: queue %s, %s (%q now)", m.Seq, m.Time.Format(time.StampMilli), q,
				body(w.t, m).Why, dead[q])
		}
	}
	return f
}

// isRecord says whether a publish is the record of this kind, for this reason ("" for
// any).
func isRecord(p natstest.Publish, kind, why string) bool {
	if !strings.Contains(p.Subject, ".bridge.") {
		return false
	}
	_, data, ok := strings.Cut(string(p.Payload), "\r\n\r\n")
	var r record
	return ok && json.Unmarshal([]byte(data), &r) == nil && r.Record == kind && (why == "" || r.Why == why)
}

// TestHang lets NATS hang for longer than the lease lasts, each time at one of the
// records that the promise hangs on: at the moment when the record has left the program.
// "held" is a server that has stored it and does not say so, "stopped" is a server that
// has it in its socket and stores it when it wakes up. What was made before the hang is
// valid behind it: a first start and a change-over have no gap, a lost queue has one, and
// no queue is left over.
func TestHang(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, kind, why string
		gaps            int
	}{
		{"first queue", "queue", "first", 0},
		{"lost queue", "queue", "lost", 1},
		{"changed options", "queue", "options changed", 0},
		{"gap opened", "gap-opened", "", 1},
		{"gap closed", "gap-closed", "", 1},
	} {
		for _, how := range []string{"held", "stopped"} {
			for _, end := range []string{"", " and SIGTERM"} {
				t.Run(c.name+", "+how+end, func(t *testing.T) {
					t.Parallel()
					var url string
					var hang func()
					var proxy *natstest.Proxy
					if how == "held" {
						url = natsServer(t)
						proxy = natstest.NewProxy(t, url)
						hang = func() { proxy.Hold(hangFor) }
					} else {
						n := natstest.StartProcess(t, "")
						url = n.URL
						proxy = natstest.NewProxy(t, url)
						hang = func() {
							n.Pause()
							time.AfterFunc(hangFor, n.Resume)
						}
					}
					w := newWorld(t, url, unlimited)
					w.nats = proxy.URL
					hung := make(chan struct{})
					once := sync.OnceFunc(func() { hang(); close(hung) })
					watch := func() {
						proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
							if isRecord(p, c.kind, c.why) {
								once()
							}
							return natstest.Pass
						})
					}

					var args []string
					if c.why == "first" {
						watch()
					}
					p := w.run()
					if c.why != "first" {
						w.registered()
						w.mark(20)
						w.settle()
						watch()
						if c.why == "options changed" {
							if _, err := p.Stop(); err != nil {
								t.Error(err)
							}
							w.mark(20)
							args = []string{"--slim-presence"}
							p = w.run(args...)
						} else {
							w.zulip.ExpireAll()
							w.mark(20)
						}
					}
					select {
					case <-hung:
					case <-time.After(harness.Patience):
						t.Fatalf("there was no %s record, %s", c.kind, c.why)
					}
					began := time.Now()
					w.mark(20)
					if end != "" {
						time.Sleep(hangFor / 4)
						w.mark(20)
						took, err := p.Stop()
						if err != nil {
							t.Error(err)
						}
						t.Logf("SIGTERM in the hang: it took %v", took.Round(time.Millisecond))
						if took > stopLimit {
							t.Errorf("the program took %v to stop, want at most %v", took, stopLimit)
						}
						w.mark(20)
						w.run(args...)
					}
					time.Sleep(time.Until(began.Add(hangFor)))
					w.mark(20)
					w.healed()
					w.mark(20)
					w.healed()
					t.Log(w.whole(c.gaps))
				})
			}
		}
	}
}

// stopLimit is how long a stop may take: a supervisor kills what takes longer (docker
// stop).
const stopLimit = 10 * time.Second
