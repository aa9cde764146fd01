//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	children()
	os.Exit(m.Run())
}

func TestStatistics(t *testing.T) {
	for _, c := range []struct {
		list []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}, {[]float64{7}, 7}} {
		before := slices.Clone(c.list)
		if got := median(c.list); got != c.want {
			t.Errorf("median of %v: %v, want %v", c.list, got, c.want)
		}
		if !slices.Equal(c.list, before) {
			t.Errorf("median has changed %v into %v", before, c.list)
		}
	}
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for p, want := range map[float64]float64{50: 50, 99: 99, 100: 100, 0: 1, 98.5: 99} {
		if got := percentile(hundred, p); got != want {
			t.Errorf("percentile %v of 1 to 100: %v, want %v", p, got, want)
		}
	}
	if got := percentile([]float64{5}, 99); got != 5 {
		t.Errorf("percentile of one figure: %v", got)
	}
	if !math.IsNaN(median(nil)) || !math.IsNaN(percentile(nil, 50)) {
		t.Error("nothing has a median or a percentile")
	}
}

// The ratio is that of the rounds, not of the medians: a round in which the machine was
// slow was slow for both.
func TestCompared(t *testing.T) {
	ours, theirs := []float64{50, 90, 100}, []float64{100, 100, 80}
	r := compared("drain", "a case", "events/s", "", ours, "bare", theirs, atLeast(0.9))
	if r.Value != 90 || r.Reference.Value != 100 || r.Ratio != 0.9 || !*r.Met {
		t.Errorf("compared: %+v, reference %+v", r, r.Reference)
	}
	if r = compared("", "", "", "", ours, "bare", theirs, atMost(0.8)); *r.Met {
		t.Error("0.9 is taken for at most 0.8")
	}
	if r = compared("", "", "peak", "MB", []float64{39}, "", nil, atMost(40)); !*r.Met || r.Reference != nil || r.Ratio != 0 {
		t.Errorf("without a reference the goal is the figure's: %+v", r)
	}
	if r = compared("", "", "", "", ours, "", nil, nil); r.Goal != nil || r.Met != nil {
		t.Errorf("without a goal nothing is met or missed: %+v", r)
	}
}

func TestTable(t *testing.T) {
	rows := []row{compared("drain", "500 B", "events/s", "", []float64{97123.4}, "bare loop", []float64{100000}, atLeast(0.97)),
		compared("live", "500 B", "p50", "ms", []float64{0.3214}, "relay", []float64{0.25}, atMost(1)),
		compared("cost", "binary", "size", "MB", []float64{37.5}, "", nil, nil)}
	var out bytes.Buffer
	printRows(&out, rows)
	var got [][]string
	for line := range strings.Lines(out.String()) {
		if f := strings.Fields(line); len(f) > 0 {
			got = append(got, f)
		}
	}
	want := [][]string{strings.Fields("section case what figure reference ratio goal"),
		strings.Fields("drain 500 B events/s 97123 bare loop 100000 0.971 ≥ 0.970 met"),
		strings.Fields("live 500 B p50 0.321 ms relay 0.250 1.286 ≤ 1 missed"), strings.Fields("cost binary size 37.50 MB")}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("the table is\n%s", &out)
	}
	text, err := json.Marshal(rows)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"value":97123.4`, `"reference":{"name":"bare loop","value":100000}`,
		`"goal":{"at_least":0.97},"met":true`, `"goal":{"at_most":1},"met":false`,
		`{"section":"cost","case":"binary","what":"size","value":37.5,"unit":"MB"}`} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

func TestBenchFigure(t *testing.T) {
	got, err := benchFigure("13:27:05 Using stream: B\n\nNATS JetStream asynchronous publisher stats: 85,673 msgs/sec ~ 57 MiB/sec ~ " +
		"min: 3,092.06us\n")
	if got != 85673 || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := benchFigure("nats: error: no responders"); err == nil || !strings.Contains(err.Error(), "no responders") {
		t.Errorf("an error of the command is taken for a figure, or is not told: %v", err)
	}
}

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"-only nothing":  `there is no section "nothing"`,
		"-only drain,":   `there is no section ""`,
		"-rounds 0":      "at least one round",
		"-scale 0":       "above 0",
		"-scale NaN":     "above 0",
		"-scale x":       "invalid value",
		"-frequency 3":   "not defined: -frequency",
		"drain":          `"drain" is no option`,
		"-rounds 3 live": `"live" is no option`,
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), &out, &errs); code != 2 || !strings.Contains(errs.String(), want) ||
			strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%s: exit code %d, %q; want 2 and a line with %q", args, code, errs.String(), want)
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"-list", "-only", "live,drain"}, &out, &errs); code != 0 ||
		!strings.HasPrefix(out.String(), "drain ") || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("-list: %d, %q, %q", code, out.String(), errs.String())
	}
}

// A way of so many milliseconds takes so long, keeps the order, and loses nothing.
func TestLine(t *testing.T) {
	s := newScope(t.Context(), &bench{errors: t.Output(), dir: t.TempDir()}, "far")
	const trip = 20 * time.Millisecond
	if !s.attempt(func(s *scope) {
		if got := roundTrip(s, trip); got < 20 {
			s.Errorf("a round trip of %v took %v ms", trip, got)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		s.must(err)
		s.Cleanup(func() { l.Close() })
		text := bytes.Repeat([]byte("all work and no play\n"), 100_000)
		go func() {
			if c, err := l.Accept(); err == nil {
				c.Write(text)
				c.Close()
			}
		}()
		c, err := net.Dial("tcp", newLine(s, l.Addr().String(), trip))
		s.must(err)
		defer c.Close()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, text) {
			s.Errorf("%d bytes of %d came, and an error: %v", len(got), len(text), err)
		}
	}) {
		t.Error("see above")
	}
}

// The scope of a case ends it at Fatal, and ends what it had started, the newest first.
func TestScope(t *testing.T) {
	var errs bytes.Buffer
	var order []string
	say := func(s string) func() { return func() { order = append(order, s) } }
	s := newScope(t.Context(), &bench{errors: &errs, dir: t.TempDir()}, "drain")
	whole := s.attempt(func(s *scope) {
		s.try("first", func(s *scope) {
			s.Cleanup(say("server"))
			s.Cleanup(say("program"))
			s.Fatal("no", "answer")
			say("too far")()
		})
		s.try("second", func(s *scope) { say("second")() })
	})
	if want := []string{"program", "server", "second"}; whole || !slices.Equal(order, want) {
		t.Errorf("%v: %v, want %v", whole, order, want)
	}
	if !strings.Contains(errs.String(), "drain, first: FAILED: no answer") {
		t.Errorf("%q", errs.String())
	}
}

func TestWeights(t *testing.T) {
	for _, size := range []int{100, 500, 2000} {
		for _, id := range []int64{0, 7, 1_234_567} {
			raw := made(size)(nil, id)
			var e struct {
				ID      int64
				Type    string
				Message struct{ ID int64 }
			}
			if err := json.Unmarshal(raw, &e); err != nil || e.ID != id || e.Type != "message" || e.Message.ID != 1_000_000+id ||
				len(raw) < size-15 || len(raw) > size+15 {
				t.Errorf("%d bytes were asked for: %v, %d bytes: %s", size, err, len(raw), raw)
			}
			raw = []byte(strings.ReplaceAll(emitted(size, id), "%ID%", "77"))
			if err := json.Unmarshal(raw, &e); err != nil || e.ID != 77 || e.Message.ID != 1_000_000+id {
				t.Errorf("emitted: %v: %s", err, raw)
			}
		}
	}
}
