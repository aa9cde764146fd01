package bridge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/poller"
)

// lines is a log that is read while it is written.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

// taken gives what was written above debug level since it was called last.
func (l *lines) taken(t *testing.T) (list []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.all.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("no line of a log: %s (%v)", line, err)
		}
		if fields["level"] != "debug" && fields["level"] != "trace" {
			list = append(list, fields)
		}
	}
	l.all.Reset()
	return list
}

// hour takes the one line that an hour has.
func (l *lines) hour(t *testing.T) map[string]any {
	t.Helper()
	list := l.taken(t)
	if len(list) != 1 || list[0]["event"] != "hourly" || list[0]["level"] != "info" {
		t.Fatalf("an hour has %d lines, want one, the hourly one: %v", len(list), list)
	}
	return list[0]
}

// figures are the numbers of a line.
func figures(line map[string]any) map[string]int {
	list := map[string]int{}
	for name, value := range line {
		if n, is := value.(float64); is {
			list[name] = int(n)
		}
	}
	return list
}

// hours is a story with the hourly lines of one instance, or of several in one process.
func hours(t *testing.T, instances int, f func(w *world, log *lines)) {
	story(t, func(w *world, one *instance) {
		log := &lines{}
		w.log = zerolog.New(log)
		if instances > 1 {
			w.lease = &simLease{ttl: 4 * time.Second}
		}
		bridges := []*bridge.Bridge{}
		for n := range instances {
			i := one
			if n > 0 {
				i = w.instance()
			}
			i.start()
			time.Sleep(time.Second)
			bridges = append(bridges, i.bridge)
		}
		statuses := func() (list []bridge.Status) {
			for i, b := range bridges {
				s := b.Status()
				s.Realm = strconv.Itoa(i) // as if they were of different realms
				list = append(list, s)
			}
			return list
		}
		ctx, end := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); bridge.Hourly(ctx, w.log, statuses) }()
		defer func() { end(); <-ended }()
		time.Sleep(time.Minute) // the lines of the start
		f(w, log)
	})
}

// An idle hour is one line, and nothing else above debug level.
func TestAnIdleHourIsOneLine(t *testing.T) {
	hours(t, 1, func(w *world, log *lines) {
		if len(log.taken(t)) == 0 {
			t.Fatal("not even the start is in the log")
		}
		time.Sleep(time.Hour)
		log.hour(t)
		for range 5 {
			before := w.jet.Ever(0)
			time.Sleep(time.Hour)
			line := log.hour(t)
			got := figures(line)
			// Heartbeats are all there is, and each answers a poll.
			bytes, beats := 0, 0
			for _, m := range w.jet.Ever(0)[len(before):] {
				bytes += len(m.Data)
				if strings.HasSuffix(m.Subject, ".heartbeat") {
					beats++
				}
			}
			if beats < 60 || beats > 90 {
				t.Errorf("%d heartbeats in an hour", beats)
			}
			want := map[string]int{"events_stored": beats, "bytes_stored": bytes, "polls": beats, "gaps_opened": 0,
				"messages_refilled": 0}
			// The line is a minute older than what was counted here.
			for name, n := range want {
				if off := got[name] - n; off < -n/20-1 || off > n/20+1 {
					t.Errorf("%s is %d, want about %d", name, got[name], n)
				}
				delete(got, name)
			}
			if len(got) > 0 {
				t.Errorf("further figures: %v", got)
			}
			life, err := time.ParseDuration(line["queue_lives_for"].(string))
			if err != nil || life <= 0 || life > poller.DefaultLife || life < poller.DefaultLife-5*time.Minute {
				t.Errorf("the queue lives for %v, want a little less than %v", line["queue_lives_for"],
					poller.DefaultLife)
			}
		}
	})
}

// A lost queue is in the line of its hour, and not in the next one.
func TestAnHourWithAGap(t *testing.T) {
	hours(t, 1, func(w *world, log *lines) {
		w.say(10)
		time.Sleep(10 * time.Minute)
		w.zulip.ExpireQueue(w.zulip.Queues()[0].ID)
		w.say(5)
		time.Sleep(50 * time.Minute)
		list := log.taken(t)
		line := list[len(list)-1]
		if got := figures(line); line["event"] != "hourly" || got["gaps_opened"] != 1 || got["messages_refilled"] != 5 {
			t.Errorf("the last line is %v; want the hourly one, with one gap and five messages", line)
		}
		var told []any
		for _, line := range list {
			told = append(told, line["event"])
			if line["event"] == nil {
				t.Errorf("a line without a name: %v", line)
			}
		}
		t.Logf("told: %v", told)
		time.Sleep(time.Hour)
		if got := figures(log.hour(t)); got["gaps_opened"] != 0 || got["messages_refilled"] != 0 {
			t.Errorf("an hour later: %v", got)
		}
	})
}

// An instance that stands by has nothing to tell but that: its zeros. A process with two
// bridges has one line.
func TestOneLineAProcess(t *testing.T) {
	hours(t, 2, func(w *world, log *lines) {
		log.taken(t)
		for range 3 {
			time.Sleep(time.Hour)
			if n := figures(log.hour(t))["events_stored"]; n < 60 || n > 90 {
				t.Errorf("%d events stored, want the heartbeats of one queue", n)
			}
		}
	})
}

// Who takes over says so, and so does who has the lease again after losing it; a start
// that finds it free is not worth a line.
func TestLeadingIsLogged(t *testing.T) {
	story(t, func(w *world, one *instance) {
		log := &lines{}
		w.log = zerolog.New(log)
		w.lease = &simLease{ttl: 4 * time.Second}
		leads := func() (who string) {
			for _, line := range log.taken(t) {
				if line["event"] == "leading" || line["event"] == "lease_lost" {
					who += fmt.Sprint(line["event"], " ", line["instance"], ". ")
				}
			}
			return who
		}
		one.start()
		time.Sleep(time.Second)
		two := w.instance()
		two.start()
		time.Sleep(time.Minute)
		if said := leads(); said != "" {
			t.Errorf("a start and a standby: %s", said)
		}
		one.kill()
		time.Sleep(time.Minute)
		if said := leads(); said != "leading b1. " {
			t.Errorf("after the first one died: %s", said)
		}
		w.lease.mu.Lock()
		held := w.lease.holder
		w.lease.holder = nil
		w.lease.mu.Unlock()
		held.cancel()
		time.Sleep(time.Minute)
		if said := leads(); said != "lease_lost b1. leading b1. " {
			t.Errorf("after the lease was lost: %s", said)
		}
		time.Sleep(time.Hour)
		if said := leads(); said != "" {
			t.Errorf("an hour later: %s", said)
		}
	})
}
