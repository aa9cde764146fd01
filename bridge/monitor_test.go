package bridge_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"zulip-nats/bridge"
	"zulip-nats/monitor"
	"zulip-nats/stream"
	"zulip-nats/zulipsim"
)

// asks is what the endpoints say of an instance.
func (i *instance) asks(path string) (code int, body string) {
	w := httptest.NewRecorder()
	b := i.bridge
	monitor.New("1.2.3", func() []bridge.Status { return []bridge.Status{b.Status()} }).
		ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

// health is the codes of /healthz, /readyz and /status, and the state that that says.
func (i *instance) health() string {
	said := ""
	for _, path := range []string{"/healthz", "/readyz", "/status"} {
		code, _ := i.asks(path)
		said += fmt.Sprint(code, " ")
	}
	return said + i.status().State
}

// status is what /status says of the realm.
func (i *instance) status() monitor.RealmReport {
	_, body := i.asks("/status")
	var report monitor.Report
	if err := json.Unmarshal([]byte(body), &report); err != nil || len(report.Realms) != 1 {
		i.w.t.Fatalf("/status says %s, %v", body, err)
	}
	return report.Realms[0]
}

// metrics is what /metrics says, without what the Go runtime and the process add, as
// name{label values}.
func (i *instance) metrics() map[string]float64 {
	_, body := i.asks("/metrics")
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		i.w.t.Fatal(err)
	}
	all := map[string]float64{}
	for name, family := range families {
		short, ours := strings.CutPrefix(name, "zulip_nats_")
		if !ours {
			continue
		}
		for _, m := range family.Metric {
			key := short
			for _, l := range m.Label {
				if l.GetName() != "realm" {
					key += " " + l.GetValue()
				}
			}
			all[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}

// snare makes what has the name op hang, whatever its context says, from when it is set
// until the test lets it go.
type snare struct {
	op       string
	set, has atomic.Bool
	end      chan struct{}
}

func (s *snare) pass(op string) {
	if s.op == op && s.set.Load() {
		s.has.Store(true)
		<-s.end
	}
}

// snaredStream and snaredWire are the ways to NATS and to Zulip with a snare on them.
type snaredStream struct {
	*gated
	snare *snare
}

func (s *snaredStream) Last(ctx context.Context) (stream.Cursor, *stream.Stored, error) {
	s.snare.pass("last")
	return s.gated.Last(ctx)
}

func (s *snaredStream) AppendEach(ctx context.Context, after stream.Cursor, source stream.Source) (stream.Cursor, error) {
	s.snare.pass("append")
	return s.gated.AppendEach(ctx, after, source)
}

type snaredWire struct {
	next  http.RoundTripper
	snare *snare
}

func (w *snaredWire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.snare.pass("poll")
	return w.next.RoundTrip(r)
}

// TestEndpoints is the table of the states in which a person meets a bridge: the codes of
// /healthz, /readyz and /status, and what that and /metrics say. Each lasts, and is asked
// for all the time.
func TestEndpoints(t *testing.T) {
	const up = "leader=1 times=3"
	const down = "leader=0 times=0"
	const renewing = "leader=1 times=2" // when the new queue's clock began is not known
	for _, test := range []struct {
		name    string
		before  func(w *world) // what goes before the start
		fault   func(w *world, one *instance)
		lasts   time.Duration
		want    string
		metrics string
		gap     float64
	}{
		{"starting", func(w *world) {
			w.lease = &simLease{ttl: 4 * time.Second, shared: true}
			w.configure = func(c *bridge.Config) {
				acquire := c.Acquire
				c.Acquire = func(ctx context.Context, standby func(string)) (bridge.Lease, error) {
					w.setDown(true) // between the opening of the stream and the lease
					return acquire(ctx, standby)
				}
			}
		}, nil, time.Hour, "200 503 503 starting", down, 0},
		{"NATS away at the start", func(w *world) { w.setDown(true) }, nil, time.Hour, "200 503 503 waiting-nats", down, 0},
		{"following", nil, func(*world, *instance) {}, time.Hour, "200 200 200 following", up, 0},
		{"Zulip away", nil, func(w *world, _ *instance) { w.zulip.Fault(zulipsim.BadGateway()) }, time.Hour,
			"200 200 503 waiting-zulip", up, 0},
		{"Zulip that does not answer", nil, func(w *world, _ *instance) { w.zulip.Fault(zulipsim.Fault{Hang: true}) },
			time.Hour, "200 200 503 waiting-zulip", up, 0},
		{"Zulip tells to wait for an hour", nil, func(w *world, _ *instance) { w.zulip.Fault(zulipsim.TooMany("3600")) },
			50 * time.Minute, "200 200 503 waiting-zulip", up, 0},
		{"an answer that comes slowly", nil, func(w *world, _ *instance) {
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Trickle: 1, TricklePause: 10 * time.Second})
		}, 20 * time.Minute, "200 200 200 following", up, 0},
		{"NATS away", nil, func(w *world, _ *instance) { w.setDown(true) }, time.Hour, "200 200 503 waiting-nats", up, 0},
		{"registering", nil, func(w *world, _ *instance) {
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Delay: 50 * time.Second})
			w.expire()
		}, 30 * time.Second, "200 200 503 registering", up, 1},
		{"refilling", nil, func(w *world, _ *instance) {
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Delay: 50 * time.Second})
			w.expire()
		}, 30 * time.Second, "200 200 200 refilling", renewing, 1},
		{"key refused", nil, func(w *world, _ *instance) { w.zulip.Fault(zulipsim.Unauthorized()) }, time.Hour,
			"200 200 503 waiting-zulip", up, 0},
	} {
		if test.lasts > 30*time.Minute && !longCourses {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.truncated = true
				if test.before != nil {
					test.before(w)
					one.start()
				} else {
					one.follows(3)
					test.fault(w, one)
					w.say(1)
				}
				began := time.Now()
				time.Sleep(5 * time.Second)
				for ; time.Since(began) < test.lasts; time.Sleep(7 * time.Second) {
					if got, want := one.health()[:4], test.want[:4]; got != want {
						t.Fatalf("behind %v: %s", time.Since(began), one.health())
					}
				}
				if got := one.health(); got != test.want {
					t.Errorf("it says %q, want %q", got, test.want)
				}
				m, times := one.metrics(), 0
				for _, name := range []string{"last_stored", "last_poll", "queue_expires"} {
					if at, is := m[name+"_timestamp_seconds"]; is {
						times++
						if ago := time.Since(time.Unix(int64(at), 0)); ago > 2*time.Hour || ago < -48*time.Hour {
							t.Errorf("%s is %v ago", name, ago)
						}
					}
				}
				if got := fmt.Sprintf("leader=%v times=%d", m["leader"], times); got != test.metrics ||
					m["gap_open"] != test.gap || m["build_info 1.2.3"] != 1 {
					t.Errorf("the metrics say %s, gap %v, build info %v", got, m["gap_open"], m["build_info 1.2.3"])
				}
				in := 0.0
				for _, state := range bridge.States {
					in += m["state "+string(state)]
				}
				if state := strings.Fields(test.want)[3]; m["state "+state] != 1 || in != 1 {
					t.Errorf("of all states it is in %v, and in %s: %v", in, state, m["state "+state])
				}
				if s := one.status(); strings.HasPrefix(s.State, "waiting") == (len(s.Reasons) == 0) ||
					(s.Gap != nil) != (test.gap > 0) || s.Says == "" {
					t.Errorf("/status says %+v", s)
				}
				w.setDown(false)
				w.zulip.ClearFaults()
				one.stop()
				time.Sleep(time.Hour)
				if got := one.health(); !strings.HasSuffix(got, "503 stopped") || !strings.HasPrefix(got, "503") {
					t.Errorf("stopped, it says %q", got)
				}
			})
		})
	}
}

// TestEndpointsOfAStandby: it has come up, and is well for however long it waits.
func TestEndpointsOfAStandby(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.lease = &simLease{ttl: 4 * time.Second}
		two := w.instance()
		one.follows(3)
		two.start()
		for range 60 {
			time.Sleep(time.Minute)
			if got := two.health(); got != "200 200 200 standby" {
				t.Fatalf("the standby says %q", got)
			}
		}
		m := two.metrics()
		for name := range m {
			if strings.Contains(name, "timestamp") {
				t.Errorf("a standby has %s", name)
			}
		}
		if m["leader"] != 0 || m["state standby"] != 1 || one.metrics()["leader"] != 1 {
			t.Errorf("the standby has %v", m)
		}
		if s := two.status(); s.Leads || s.Leader != "a1" || s.LastEventID != nil || s.LastPoll != nil || s.Queue != "" {
			t.Errorf("/status of the standby says %+v", s)
		}
	})
}

// TestWedged: a loop that hangs is told within three minutes, wherever it does and
// whatever was away before, and no longer than until it goes on.
func TestWedged(t *testing.T) {
	for _, test := range []struct {
		op     string
		away   bool // Zulip is, before
		brings func(w *world)
	}{
		{"append", false, func(w *world) { w.say(1) }},
		{"last", false, (*world).expire},
		{"poll", false, func(w *world) { w.say(1) }},
		{"poll", true, func(*world) {}},
	} {
		t.Run(fmt.Sprintf("%s, away %v", test.op, test.away), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				trap := &snare{op: test.op, end: make(chan struct{})}
				w.configure = func(c *bridge.Config) {
					c.Poller.Client.Transport = &snaredWire{c.Poller.Client.Transport, trap}
					open := c.Open
					c.Open = func(ctx context.Context) (bridge.Stream, error) {
						opened, err := open(ctx)
						return &snaredStream{opened.(*gated), trap}, err
					}
				}
				one.follows(3)
				if test.away {
					w.zulip.Fault(zulipsim.BadGateway())
					time.Sleep(time.Hour)
				}
				trap.set.Store(true)
				test.brings(w)
				for !trap.has.Load() {
					if code, says := one.asks("/healthz"); code != 200 {
						t.Fatalf("before: %s", says)
					}
					time.Sleep(time.Second)
				}
				time.Sleep(3 * time.Minute)
				code, says := one.asks("/healthz")
				if code != 503 || !strings.Contains(says, "hangs") {
					t.Errorf("/healthz says %d, %s", code, says)
				}
				if got := one.health(); got != "503 200 503 wedged" {
					t.Errorf("it says %q", got)
				}
				trap.set.Store(false)
				close(trap.end)
				w.zulip.ClearFaults()
				time.Sleep(3 * time.Minute)
				if got := one.health(); got != "200 200 200 following" {
					t.Errorf("when it goes on it says %q", got)
				}
			})
		})
	}
}

// TestMadeUpTypes: what Zulip sends makes no new series.
func TestMadeUpTypes(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		w.zulip.Emit(map[string]any{"type": "made_up"})
		time.Sleep(time.Minute)
		before := one.metrics()
		for n := range 10_000 {
			w.zulip.Emit(map[string]any{"type": fmt.Sprintf("made_up_%d", n)})
		}
		time.Sleep(3 * time.Minute)
		after := one.metrics()
		if len(after) != len(before) || after["events_stored_total other"] != 10_001 {
			t.Errorf("%d series became %d; of other types are %v", len(before), len(after),
				after["events_stored_total other"])
		}
		if after["publish_duration_seconds"] <= before["publish_duration_seconds"] {
			t.Errorf("%v writes became %v", before["publish_duration_seconds"], after["publish_duration_seconds"])
		}
	})
}
