//go:build promtool

package bridge_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"zulip-nats/bridge"
	"zulip-nats/zulipsim"
)

// The alerts of deploy/prometheus/alerts.yml, raised and ended by real faults: in virtual
// time a fault is made, /metrics is read every 15 seconds as Prometheus would, and
// promtool evaluates the rules over what was read. It needs promtool (deploy/check).

const (
	scrapeInterval = 15 * time.Second
	alertRules     = "../deploy/prometheus/alerts.yml"
)

// promtool runs it with an input.
func promtool(t *testing.T, input string, args ...string) {
	t.Helper()
	cmd := exec.Command("promtool", args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%.5000s", strings.Join(args, " "), err, out)
	}
}

// scraper keeps samples by series, as promtool writes them: a blank between, _ where there
// is none, stale where there is one no more.
type scraper struct {
	began  time.Time
	n      int // scrapes so far
	series map[string][]string
}

// scrape reads the instances that run. If it was not called for longer than the interval,
// scrapes were missed.
func (s *scraper) scrape(instances ...*instance) {
	for ; time.Duration(s.n+1)*scrapeInterval <= time.Since(s.began); s.n++ {
		for key, values := range s.series {
			s.series[key] = append(values, "_")
		}
	}
	now := map[string]string{}
	for _, i := range instances {
		if !i.running() {
			continue
		}
		_, text := i.asks("/metrics")
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(text))
		if err != nil {
			i.w.t.Fatal(err)
		}
		for name, family := range families {
			if !strings.HasPrefix(name, "zulip_nats_") || family.GetType().String() == "HISTOGRAM" {
				continue
			}
			for _, m := range family.Metric {
				labels := []string{`instance="` + i.name + `"`}
				for _, l := range m.Label {
					labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
				}
				value := m.GetGauge().GetValue() + m.GetCounter().GetValue()
				if strings.HasSuffix(name, "_timestamp_seconds") { // time begins with 0 in promtool
					value -= float64(s.began.Unix())
				}
				now[name+"{"+strings.Join(labels, ",")+"}"] = strconv.FormatFloat(value, 'f', -1, 64)
			}
		}
	}
	for key := range now {
		if s.series[key] == nil {
			s.series[key] = slices.Repeat([]string{"_"}, s.n)
		}
	}
	for key, values := range s.series {
		value, is := now[key]
		if !is {
			value = "_"
			if last := values[len(values)-1]; last != "_" && last != "stale" {
				value = "stale"
			}
		}
		s.series[key] = append(values, value)
	}
	s.n++
}

// raisedWithin is when an alert has to fire: not before the first, counted from the fault,
// and by the second at the latest; and when it has to be over, counted from the fault's
// end.
type raisedWithin struct{ after, by, over time.Duration }

func TestAlerts(t *testing.T) {
	const quiet = 10 * time.Minute // before the fault
	var trap *snare
	notStoring := raisedWithin{4 * time.Minute, 6*time.Minute + 30*time.Second, 2 * time.Minute}
	for _, test := range []struct {
		name   string
		lease  *simLease // nil: without
		run    int       // so many instances run before the fault
		begins func(w *world, one *instance)
		lasts  time.Duration
		ends   func(w *world, one *instance)
		want   map[string]raisedWithin // all others never fire
	}{
		{"all is well", nil, 1, func(*world, *instance) {}, time.Hour, func(*world, *instance) {}, nil},
		{"NATS away", &simLease{ttl: 10 * time.Second, shared: true}, 1,
			func(w *world, _ *instance) { w.setDown(true) }, 100 * time.Minute,
			func(w *world, _ *instance) { w.setDown(false) }, map[string]raisedWithin{
				"ZulipNatsNotStoring": notStoring,
				"ZulipNatsNoLeader":   {time.Minute, 2 * time.Minute, time.Minute},
				// Three quarters of two hours behind the last poll that waited, which was up to a
				// minute and a half before.
				"ZulipNatsQueueEndsSoon": {88 * time.Minute, 92 * time.Minute, 2 * time.Minute}}},
		{"Zulip away", nil, 1, func(w *world, _ *instance) { w.zulip.Fault(zulipsim.BadGateway()) }, 100 * time.Minute,
			func(w *world, _ *instance) { w.zulip.ClearFaults() }, map[string]raisedWithin{
				"ZulipNatsNotStoring":    {3 * time.Minute, 6*time.Minute + 30*time.Second, 5 * time.Minute},
				"ZulipNatsQueueEndsSoon": {87 * time.Minute, 92 * time.Minute, 5 * time.Minute}}},
		{"a loop that hangs", nil, 1, func(*world, *instance) { trap.set.Store(true) }, 20 * time.Minute,
			func(*world, *instance) { trap.set.Store(false); close(trap.end) }, map[string]raisedWithin{
				"ZulipNatsNotStoring": {3 * time.Minute, 7 * time.Minute, 5 * time.Minute}}},
		{"a queue that Zulip dropped", nil, 1, func(w *world, _ *instance) { w.expire() }, 5 * time.Minute,
			func(*world, *instance) {}, map[string]raisedWithin{
				"ZulipNatsGapOpened": {0, time.Minute, 12 * time.Minute}}},
		{"a queue that Zulip dropped while nobody ran", nil, 1, func(w *world, one *instance) {
			one.stop()
			w.expire()
			w.instance().start()
			time.Sleep(scrapeInterval) // it is over before anybody has seen this process
		}, 5 * time.Minute, func(*world, *instance) {}, map[string]raisedWithin{
			"ZulipNatsGapOpened": {0, time.Minute, 12 * time.Minute}}},
		{"a gap that stays open", nil, 1, func(w *world, _ *instance) {
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Status: 502})
			w.expire()
		}, 20 * time.Minute, func(w *world, _ *instance) { w.zulip.ClearFaults() }, map[string]raisedWithin{
			"ZulipNatsGapOpened":  {0, time.Minute, 5 * time.Minute},
			"ZulipNatsNotStoring": {3 * time.Minute, 7 * time.Minute, 5 * time.Minute}}},
		{"a key that is refused", nil, 1, func(w *world, _ *instance) { w.zulip.Fault(zulipsim.Unauthorized()) },
			20 * time.Minute, func(w *world, _ *instance) { w.zulip.ClearFaults() }, map[string]raisedWithin{
				"ZulipNatsKeyRefused": {0, 2 * time.Minute, 5 * time.Minute},
				"ZulipNatsNotStoring": {3 * time.Minute, 6*time.Minute + 30*time.Second, 5 * time.Minute}}},
		{"a first start at which Zulip makes no queue", nil, 0, func(w *world, one *instance) {
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Status: 502})
			one.start()
		}, 20 * time.Minute, func(w *world, _ *instance) { w.zulip.ClearFaults() }, map[string]raisedWithin{
			"ZulipNatsNotStoring": {4 * time.Minute, 6*time.Minute + 30*time.Second, 5 * time.Minute}}},
		{"no process", nil, 1, func(_ *world, one *instance) { one.kill() }, 20 * time.Minute,
			func(_ *world, one *instance) { one.start() }, map[string]raisedWithin{
				"ZulipNatsNoLeader": {time.Minute, 2 * time.Minute, time.Minute}}},
		{"another instance takes over", &simLease{ttl: 10 * time.Second}, 2,
			func(_ *world, one *instance) { one.kill() }, 20 * time.Minute, func(*world, *instance) {}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := scraper{series: map[string][]string{}}
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				defer w.close()
				w.options.Life = 2 * time.Hour
				w.truncated = true
				w.lease = test.lease
				trap = &snare{op: "poll", end: make(chan struct{})}
				w.configure = func(c *bridge.Config) {
					c.Poller.Client.Transport = &snaredWire{c.Poller.Client.Transport, trap}
				}
				one := w.instance()
				if test.run > 0 {
					one.follows(3)
				}
				if test.run > 1 {
					w.instance().start()
				}
				time.Sleep(time.Minute)
				s.began = time.Now()
				scrape := func(until time.Duration) {
					for ; time.Since(s.began) < until; time.Sleep(scrapeInterval) {
						s.scrape(w.instances...)
					}
				}
				scrape(quiet)
				test.begins(w, one)
				scrape(quiet + test.lasts)
				test.ends(w, one)
				scrape(quiet + test.lasts + 20*time.Minute)
			})
			checkAlerts(t, &s, quiet, test.lasts, test.want)
		})
	}
}

// checkAlerts lets promtool see, all 15 seconds, that those alerts fire that have to.
func checkAlerts(t *testing.T, s *scraper, fault, lasts time.Duration, want map[string]raisedWithin) {
	type sample struct {
		Labels string  `json:"labels"`
		Value  float64 `json:"value"`
	}
	type exprTest struct {
		Expr    string   `json:"expr"`
		At      string   `json:"eval_time"`
		Samples []sample `json:"exp_samples"`
	}
	type series struct {
		Series string `json:"series"`
		Values string `json:"values"`
	}
	var input []series
	for _, key := range slices.Sorted(maps.Keys(s.series)) {
		input = append(input, series{key, strings.Join(s.series[key], " ")})
	}
	var tests []exprTest
	end := time.Duration(s.n-1) * scrapeInterval
	for _, alert := range []string{"ZulipNatsNotStoring", "ZulipNatsQueueEndsSoon", "ZulipNatsGapOpened",
		"ZulipNatsKeyRefused", "ZulipNatsNoLeader"} {
		expr := fmt.Sprintf(`count(ALERTS{alertname=%q,alertstate="firing",realm=%q}) or vector(0)`, alert, simRealm)
		within, fires := want[alert]
		for at := time.Duration(0); at <= end; at += scrapeInterval {
			value := 0.0
			switch {
			case !fires, at < fault+within.after, at >= fault+lasts+within.over:
			case at >= fault+within.by && at < fault+lasts:
				value = 1
			default:
				continue // it may fire or not
			}
			tests = append(tests, exprTest{expr, at.String(), []sample{{"{}", value}}})
		}
	}
	rules, err := filepath.Abs(alertRules)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]any{"rule_files": []string{rules}, "evaluation_interval": "15s",
		"tests": []any{map[string]any{"interval": "15s", "input_series": input, "promql_expr_test": tests}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "alerts_test.yml") // JSON is YAML
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "test", "rules", file)
}

// TestPromtoolMetrics: promtool is content with a real scrape, of an instance that has
// seen errors, a gap and events of many types.
func TestPromtoolMetrics(t *testing.T) {
	var text string
	story(t, func(w *world, one *instance) {
		one.follows(3)
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 2, Status: 502})
		w.say(3)
		time.Sleep(time.Minute)
		w.expire()
		time.Sleep(time.Minute)
		_, text = one.asks("/metrics")
	})
	for _, part := range []string{`zulip_nats_gaps_total{cause="dropped",realm="acme"} 1`, "zulip_nats_errors_total{"} {
		if !strings.Contains(text, part) {
			t.Errorf("there is no %s in\n%s", part, text)
		}
	}
	promtool(t, text, "check", "metrics")
}
