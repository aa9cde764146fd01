package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/health"
)

// pretend is a realm whose counters a test sets.
type pretend struct {
	mu  sync.Mutex
	now bridge.Status
}

func (p *pretend) change(f func(s *bridge.Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.now)
}

// stores counts so many events of ten bytes.
func (p *pretend) stores(n uint64) {
	p.change(func(s *bridge.Status) {
		s.Counters.Events = map[string]uint64{"message": s.Counters.Events["message"] + n}
		s.Counters.Bytes += 10 * n
	})
}

func (p *pretend) status() []bridge.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []bridge.Status{p.now}
}

// pageOf is the only realm that /page.json tells of.
func pageOf(t *testing.T, m *Monitor) PageRealm {
	t.Helper()
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/page.json", nil))
	var r PageReport
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Code != 200 || len(r.Realms) != 1 {
		t.Fatalf("%d %s, %v", w.Code, w.Body, err)
	}
	return r.Realms[0]
}

// TestHour is the last hour as the page has it, behind a course of things. What is done
// in a course begins with a full minute, and is looked at 30 s after one.
func TestHour(t *testing.T) {
	minutes := func(n int, each func(i int)) {
		for i := range n {
			each(i)
			time.Sleep(time.Minute)
		}
	}
	for _, test := range []struct {
		name   string
		course func(p *pretend)
		stored string // of the minutes, equal ones drawn together; - is one that nobody looked at
		states string // the same
		minute uint64
	}{
		{"just begun", func(p *pretend) { p.stores(3) }, "59×- 1×3", "59×- 1×following", 3},
		{"what was before is of no minute", func(p *pretend) {
			p.change(func(s *bridge.Status) { s.Realm = "new"; s.Counters.Events = map[string]uint64{"message": 1000} })
			time.Sleep(time.Minute)
			p.stores(2)
		}, "58×- 1×0 1×2", "58×- 2×following", 2},
		{"five hours, each minute one event more", func(p *pretend) {
			minutes(5*60, func(i int) { p.stores(uint64(i / 60)) })
		}, "59×4 1×0", "60×following", 0},
		{"five hours without events", func(p *pretend) { time.Sleep(5 * time.Hour) }, "60×0", "60×following", 0},
		{"an hour of silence behind events", func(p *pretend) {
			minutes(30, func(int) { p.stores(7) })
			time.Sleep(50 * time.Minute)
		}, "9×7 51×0", "60×following", 0},
		{"counters that begin anew", func(p *pretend) {
			time.Sleep(58 * time.Minute)
			p.stores(100)
			time.Sleep(time.Minute)
			p.change(func(s *bridge.Status) { s.Counters = bridge.Counters{} })
			time.Sleep(10 * time.Second)
			p.stores(5)
		}, "58×0 1×100 1×5", "60×following", 5},
		{"a realm that stops and starts", func(p *pretend) {
			time.Sleep(58 * time.Second) // a change at the very moment of a look may be seen or not
			minutes(57, func(int) { p.stores(1) })
			p.change(func(s *bridge.Status) { s.State = bridge.Stopped })
			time.Sleep(time.Minute)
			p.change(func(s *bridge.Status) { s.State, s.Counters = bridge.Starting, bridge.Counters{} })
			time.Sleep(30 * time.Second)
			p.change(func(s *bridge.Status) { s.State = bridge.Following })
			time.Sleep(90 * time.Second)
			p.stores(4)
		}, "56×1 3×0 1×4", "56×following 1×stopped 1×starting 2×following", 4},
		{"the worst of a minute", func(p *pretend) {
			time.Sleep(58*time.Minute + 20*time.Second)
			p.change(func(s *bridge.Status) { s.State = bridge.WaitingNATS })
			time.Sleep(10 * time.Second)
			p.change(func(s *bridge.Status) { s.State = bridge.WaitingZulip })
			time.Sleep(10 * time.Second)
			p.change(func(s *bridge.Status) { s.State = bridge.Following })
			time.Sleep(20 * time.Second)
			p.change(func(s *bridge.Status) { s.Late = time.Hour })
		}, "60×0", "58×following 1×waiting-nats 1×wedged", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pretend{now: bridge.Status{Realm: "acme", State: bridge.Following, LastEventID: -1}}
				m := New("1.2.3", p.status)
				ctx, end := context.WithCancel(t.Context())
				var work sync.WaitGroup
				work.Go(func() { m.history.keep(ctx, m.realms) })
				defer work.Wait()
				defer end()
				synctest.Wait()
				test.course(p)
				time.Sleep(30 * time.Second)
				r := pageOf(t, m)
				var stored, states []string
				for i, n := range r.Hour.Stored {
					states, stored = append(states, r.Hour.States[i]), append(stored, fmt.Sprint(n))
					if states[i] == "" {
						states[i], stored[i] = "-", "-"
					}
					if r.Hour.Bytes[i] != 10*n {
						t.Errorf("%d events have %d bytes", n, r.Hour.Bytes[i])
					}
				}
				if got := together(stored); got != test.stored {
					t.Errorf("stored %s, want %s", got, test.stored)
				}
				if got := together(states); got != test.states {
					t.Errorf("states %s, want %s", got, test.states)
				}
				if r.Minute.Stored != test.minute {
					t.Errorf("in the last minute %d, want %d", r.Minute.Stored, test.minute)
				}
				if now := time.Now().Truncate(time.Minute); !r.Hour.Begins.Equal(now.Add(-59 * time.Minute)) {
					t.Errorf("the hour begins %v", r.Hour.Begins)
				}
				end()
				work.Wait()
				if len(m.history.realms) != 1 {
					t.Errorf("%d realms are remembered", len(m.history.realms))
				}
			})
		})
	}
}

// together draws what is equal together.
func together(all []string) string {
	var parts []string
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n] == all[0] {
			n++
		}
		parts = append(parts, fmt.Sprintf("%d×%s", n, all[0]))
		all = all[n:]
	}
	return strings.Join(parts, " ")
}

// A process that stood still knows nothing of that time, and what came then is of the
// minute in which it went on.
func TestHourStandsStill(t *testing.T) {
	var h history
	at := time.Unix(1_800_000_000, 0)
	p := &pretend{now: bridge.Status{Realm: "acme", State: bridge.Following}}
	h.look(p.status, at)
	p.stores(10)
	h.look(p.status, at.Add(20*time.Minute))
	hr, _ := h.of("acme", at.Add(20*time.Minute))
	if got := together(hr.States); got != "39× 1×following 19× 1×following" || hr.Stored[59] != 10 ||
		hr.Stored[39] != 0 {
		t.Errorf("%s, %v", got, hr.Stored)
	}
	if hr, _ := h.of("acme", at.Add(3*time.Hour)); together(hr.States) != "60×" || slices.Max(hr.Stored) != 0 {
		t.Errorf("three hours later %v", hr)
	}
}

// TestGapsOfTheHour: a gap is of the minute in which it was opened.
func TestGapsOfTheHour(t *testing.T) {
	var h history
	at := time.Unix(1_800_000_000, 0)
	p := &pretend{now: bridge.Status{Realm: "acme", State: bridge.Following}}
	h.look(p.status, at)
	p.change(func(s *bridge.Status) { s.Counters.Gaps = map[string]uint64{"dropped": 1, "tail": 1} })
	h.look(p.status, at.Add(time.Minute))
	hr, _ := h.of("acme", at.Add(2*time.Minute))
	if hr.Gaps[58] != 2 || hr.Gaps[57]+hr.Gaps[59] != 0 {
		t.Errorf("gaps %v", hr.Gaps)
	}
}

// All states can be in the history, and the page has words for them.
func TestStatesOfThePage(t *testing.T) {
	script, err := pageFiles.ReadFile("page/page.js")
	if err != nil {
		t.Fatal(err)
	}
	are := []string{stateWedged}
	for _, s := range bridge.States {
		are = append(are, string(s))
	}
	var words []string
	for _, m := range regexp.MustCompile(`(?m)^  "([a-z-]+)": \["[A-Z]`).FindAllStringSubmatch(string(script), -1) {
		words = append(words, m[1])
	}
	for name, list := range map[string][]string{"the history": slices.Clone(states), "page.js": words} {
		slices.Sort(list)
		slices.Sort(are)
		if !slices.Equal(list, are) {
			t.Errorf("%s has the states %q, and there are %q", name, list, are)
		}
	}
	for _, cause := range bridge.GapCauses {
		if !strings.Contains(string(script), `"`+cause+`": "`) {
			t.Errorf("page.js has no words for the cause %s", cause)
		}
	}
}

// TestPageData: the page is told all that /status says and the last events, with 200
// whatever is wrong.
func TestPageData(t *testing.T) {
	s := busy()
	at := time.Unix(1_800_000_000, 0)
	s.Realm = `<script>alert("realm")</script>`
	s.Wrong = map[string]health.State{bridge.SideZulip: {Since: at, Tries: 1, Text: "<script>alert(1)</script>"}}
	s.Recent = []bridge.Run{{Type: "heartbeat", Count: 3, First: at, Last: at.Add(time.Minute)},
		{Type: "message", Count: 1, First: at, Last: at}}
	m := New("1.2.3", func() []bridge.Status { return []bridge.Status{s} })
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/page.json", nil))
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/json" ||
		strings.Contains(w.Body.String(), "<script") {
		t.Errorf("%d %s %s", w.Code, w.Header(), w.Body)
	}
	r := pageOf(t, m)
	_, text := get(t, "/status", s)
	var plain Report
	if err := json.Unmarshal([]byte(text), &plain); err != nil {
		t.Fatal(err)
	}
	counters, want := fmt.Sprint(r.RealmReport.Counters), fmt.Sprint(plain.Realms[0].Counters)
	if counters != want || r.Says != plain.Realms[0].Says || r.Reasons[0].Says != s.Wrong[bridge.SideZulip].Text ||
		r.Realm != s.Realm {
		t.Errorf("the page is told %+v, and /status says %+v", r.RealmReport, plain.Realms[0])
	}
	if got, want := fmt.Sprint(r.Recent), "[{heartbeat 3 2027-01-15 08:00:00 +0000 UTC 2027-01-15 08:01:00 +0000 UTC} "+
		"{message 1 2027-01-15 08:00:00 +0000 UTC 2027-01-15 08:00:00 +0000 UTC}]"; got != want {
		t.Errorf("last events %s, want %s", got, want)
	}
}

// TestPageOfMany: of very many realms the page gets some, those that need somebody first,
// and those whose name is asked for.
func TestPageOfMany(t *testing.T) {
	all := make([]bridge.Status, 1000)
	for i := range all {
		all[i] = bridge.Status{Realm: fmt.Sprint("r", i), State: bridge.Following}
	}
	all[17].Gap = &bridge.Gap{}
	all[500].Wrong = map[string]health.State{bridge.SideLease: {Since: time.Now(), Tries: 1, Text: "away"}}
	all[999].State, all[3].State = bridge.WaitingNATS, bridge.NeedsOperator
	m := New("1.2.3", func() []bridge.Status { return all })
	ask := func(path string) (r PageReport) {
		t.Helper()
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if r.Total != 1000 || r.Bad != 2 || r.OK {
			t.Errorf("%s: %d realms, %d bad, ok %v", path, r.Total, r.Bad, r.OK)
		}
		return r
	}
	names := func(r PageReport, n int) (list string) {
		for _, one := range r.Realms[:n] {
			list += one.Realm + " "
		}
		return list
	}
	r := ask("/page.json")
	if len(r.Realms) != 50 || r.Found != 1000 || names(r, 6) != "r3 r999 r500 r17 r0 r1 " {
		t.Errorf("%d of %d, first %s", len(r.Realms), r.Found, names(r, 6))
	}
	r = ask("/page.json?name=R99")
	if r.Found != 11 || names(r, len(r.Realms)) != "r99 r990 r991 r992 r993 r994 r995 r996 r997 r998 r999 " {
		t.Errorf("%d of %d, %s", len(r.Realms), r.Found, names(r, len(r.Realms)))
	}
	if r = ask("/page.json?name=acme"); r.Found != 0 || len(r.Realms) != 0 {
		t.Errorf("%d of %d are called so", len(r.Realms), r.Found)
	}
}

// TestPageFiles: what the page is made of is served, needs nothing else, and cannot make
// markup of what it is told.
func TestPageFiles(t *testing.T) {
	h := New("1.2.3", func() []bridge.Status { return nil })
	served := map[string]string{"index.html": "/", "page.js": "/page.js", "style.css": "/style.css",
		"icon.svg": "/icon.svg"}
	types := map[string]string{"index.html": "text/html; charset=utf-8", "page.js": "text/javascript; charset=utf-8",
		"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}
	entries, err := fs.ReadDir(pageFiles, "page")
	if err != nil || len(entries) != len(served) {
		t.Fatalf("%v, %v", entries, err)
	}
	elsewhere := regexp.MustCompile(`(?i)(https?:)?//[a-z0-9]|@import|url\(`)
	unsafe := regexp.MustCompile(`(?i)innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|` +
		`new Function|DOMParser|setHTML|createContextualFragment|srcdoc|<script[^>]*>[^<]|<style|\sstyle=|\son[a-z]+=|javascript:`)
	for _, e := range entries {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", served[e.Name()], nil))
		want, _ := os.ReadFile("page/" + e.Name())
		if w.Code != 200 || w.Body.String() != string(want) || len(want) == 0 {
			t.Errorf("%s: %d, %d bytes", e.Name(), w.Code, w.Body.Len())
		}
		for name, want := range map[string]string{
			"Content-Type": types[e.Name()], "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
			"Referrer-Policy": "no-referrer",
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
				"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", e.Name(), name, got, want)
			}
		}
		text := strings.ReplaceAll(w.Body.String(), "http://www.w3.org/2000/svg", "") // a name, nobody asks there
		for line := range strings.Lines(text) {
			line, comment, _ := strings.Cut(line, "// ")
			if found := append(elsewhere.FindAllString(line, -1), unsafe.FindAllString(line, -1)...); len(found) > 0 {
				t.Errorf("%s has %q (%s)", e.Name(), found, comment)
			}
		}
	}
}

// The history is kept from when it is served until it is not, and no longer.
func TestHistoryIsKeptWhileServed(t *testing.T) {
	var asked, over atomic.Bool
	first := make(chan struct{})
	m := New("1.2.3", func() []bridge.Status {
		if over.Load() {
			t.Error("it looks behind the stop")
		}
		if !asked.Swap(true) {
			close(first)
		}
		return nil
	})
	if asked.Load() {
		t.Error("it looks before it is served")
	}
	stop, err := Serve("127.0.0.1:0", m, false, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-first:
	case <-time.After(2 * time.Minute):
		t.Error("it does not look")
	}
	stop() // waits for it
	over.Store(true)
	if n := len(m.history.realms); n != 0 {
		t.Errorf("%d realms", n)
	}
}

// BenchmarkLook is what a look at fifty realms costs, each five seconds.
func BenchmarkLook(b *testing.B) {
	var h history
	realms := make([]bridge.Status, 50)
	for i := range realms {
		realms[i] = bridge.Status{Realm: fmt.Sprint(i), State: bridge.Following}
	}
	b.ReportAllocs()
	for b.Loop() {
		h.look(func() []bridge.Status { return realms }, time.Now())
	}
}
