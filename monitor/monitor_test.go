package monitor

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/health"
	"zulip-nats/poller"
)

// busy is a realm of which everything is known.
func busy() bridge.Status {
	at := time.Unix(1_800_000_000, 0)
	s := bridge.Status{Realm: "acme", State: bridge.WaitingNATS, Since: at, Ready: true, Leads: true, Leader: "host-1-abc",
		Queue: "q", LastEventID: 42, Expires: at.Add(24 * time.Hour), Life: 24 * time.Hour, Answered: at, StoredSeq: 99, Stored: at,
		Gap:   &bridge.Gap{Since: at, Cause: "Zulip has dropped the queue"},
		Wrong: map[string]health.State{bridge.SideNATS: {Since: at, Tries: 3, Reason: "away", Text: "NATS is <away>"}},
		Counters: bridge.Counters{Events: map[string]uint64{"message": 5, "other": 1}, Bytes: 1000, Rejected: 1, Skipped: 2,
			Refilled: 3, Erased: 6, Excluded: 7, Oversize: 4, Queues: 2, Gaps: map[string]uint64{"dropped": 1}, LastGap: at,
			Polls: poller.Polls{Events: 10, Empty: 1, Refused: 2, Limited: 3, Failed: 4}, RateLimited: 3,
			Errors: map[bridge.Error]uint64{{Side: bridge.SideZulip, Kind: "server"}: 7}}}
	s.Counters.Writes.Count, s.Counters.Writes.Sum = 4, 3*time.Second
	s.Counters.Writes.Up[0], s.Counters.Writes.Up[9] = 1, 2 // and one that took longer than all bounds
	return s
}

func standby() bridge.Status {
	return bridge.Status{Realm: "other", State: bridge.Standby, Since: time.Unix(1_800_000_000, 0), Ready: true,
		Leader: "host-2-def", LastEventID: -1}
}

func get(t *testing.T, path string, realms ...bridge.Status) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	New("1.2.3", func() []bridge.Status { return realms }).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

// TestMetrics compares all series of ours with what they have to be.
func TestMetrics(t *testing.T) {
	_, text := get(t, "/metrics", busy(), standby())
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	if families, err := parser.TextToMetricFamilies(strings.NewReader(text)); err != nil ||
		families["go_goroutines"] == nil {
		t.Errorf("%v; of the Go runtime: %v", err, families["go_goroutines"])
	}
	var got []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "zulip_nats_") && !strings.Contains(line, `_bucket{le="0.`) {
			got = append(got, strings.TrimSpace(line))
		}
	}
	want := `zulip_nats_build_info{version="1.2.3"} 1
zulip_nats_bytes_stored_total{realm="acme"} 1000
zulip_nats_bytes_stored_total{realm="other"} 0
zulip_nats_errors_total{kind="server",realm="acme",side="zulip"} 7
zulip_nats_events_excluded_total{realm="acme"} 7
zulip_nats_events_excluded_total{realm="other"} 0
zulip_nats_events_oversize_total{realm="acme"} 4
zulip_nats_events_oversize_total{realm="other"} 0
zulip_nats_events_rejected_total{realm="acme"} 1
zulip_nats_events_rejected_total{realm="other"} 0
zulip_nats_events_stored_total{realm="acme",type="message"} 5
zulip_nats_events_stored_total{realm="acme",type="other"} 1
zulip_nats_gap_open{realm="acme"} 1
zulip_nats_gap_open{realm="other"} 0
zulip_nats_gaps_total{cause="account",realm="acme"} 0
zulip_nats_gaps_total{cause="account",realm="other"} 0
zulip_nats_gaps_total{cause="dropped",realm="acme"} 1
zulip_nats_gaps_total{cause="dropped",realm="other"} 0
zulip_nats_gaps_total{cause="past",realm="acme"} 0
zulip_nats_gaps_total{cause="past",realm="other"} 0
zulip_nats_gaps_total{cause="retired",realm="acme"} 0
zulip_nats_gaps_total{cause="retired",realm="other"} 0
zulip_nats_gaps_total{cause="tail",realm="acme"} 0
zulip_nats_gaps_total{cause="tail",realm="other"} 0
zulip_nats_last_gap_timestamp_seconds{realm="acme"} 1.8e+09
zulip_nats_last_poll_timestamp_seconds{realm="acme"} 1.8e+09
zulip_nats_last_stored_timestamp_seconds{realm="acme"} 1.8e+09
zulip_nats_leader{realm="acme"} 1
zulip_nats_leader{realm="other"} 0
zulip_nats_messages_erased_total{realm="acme"} 6
zulip_nats_messages_erased_total{realm="other"} 0
zulip_nats_messages_refilled_total{realm="acme"} 3
zulip_nats_messages_refilled_total{realm="other"} 0
zulip_nats_polls_total{outcome="empty",realm="acme"} 1
zulip_nats_polls_total{outcome="empty",realm="other"} 0
zulip_nats_polls_total{outcome="events",realm="acme"} 10
zulip_nats_polls_total{outcome="events",realm="other"} 0
zulip_nats_polls_total{outcome="failed",realm="acme"} 4
zulip_nats_polls_total{outcome="failed",realm="other"} 0
zulip_nats_polls_total{outcome="limited",realm="acme"} 3
zulip_nats_polls_total{outcome="limited",realm="other"} 0
zulip_nats_polls_total{outcome="refused",realm="acme"} 2
zulip_nats_polls_total{outcome="refused",realm="other"} 0
zulip_nats_publish_duration_seconds_bucket{le="1"} 3
zulip_nats_publish_duration_seconds_bucket{le="2.5"} 3
zulip_nats_publish_duration_seconds_bucket{le="5"} 3
zulip_nats_publish_duration_seconds_bucket{le="10"} 3
zulip_nats_publish_duration_seconds_bucket{le="60"} 3
zulip_nats_publish_duration_seconds_bucket{le="+Inf"} 4
zulip_nats_publish_duration_seconds_sum 3
zulip_nats_publish_duration_seconds_count 4
zulip_nats_queue_expires_timestamp_seconds{realm="acme"} 1.8000864e+09
zulip_nats_queue_life_seconds{realm="acme"} 86400
zulip_nats_rate_limited_total{realm="acme"} 3
zulip_nats_rate_limited_total{realm="other"} 0
zulip_nats_state{realm="acme",state="following"} 0
zulip_nats_state{realm="acme",state="needs-operator"} 0
zulip_nats_state{realm="acme",state="refilling"} 0
zulip_nats_state{realm="acme",state="registering"} 0
zulip_nats_state{realm="acme",state="standby"} 0
zulip_nats_state{realm="acme",state="starting"} 0
zulip_nats_state{realm="acme",state="stopped"} 0
zulip_nats_state{realm="acme",state="waiting-nats"} 1
zulip_nats_state{realm="acme",state="waiting-zulip"} 0
zulip_nats_state{realm="other",state="following"} 0
zulip_nats_state{realm="other",state="needs-operator"} 0
zulip_nats_state{realm="other",state="refilling"} 0
zulip_nats_state{realm="other",state="registering"} 0
zulip_nats_state{realm="other",state="standby"} 1
zulip_nats_state{realm="other",state="starting"} 0
zulip_nats_state{realm="other",state="stopped"} 0
zulip_nats_state{realm="other",state="waiting-nats"} 0
zulip_nats_state{realm="other",state="waiting-zulip"} 0`
	if wanted := strings.Split(want, "\n"); !slices.Equal(got, wanted) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

// TestStatus compares the whole answer with what it has to be.
func TestStatus(t *testing.T) {
	code, text := get(t, "/status", busy(), standby())
	text = regexp.MustCompile(`"time": "[^"]+"`).ReplaceAllString(text, `"time": "now"`)
	want := `{
  "ok": false,
  "version": "1.2.3",
  "time": "now",
  "realms": [
    {
      "realm": "acme",
      "ok": false,
      "state": "waiting-nats",
      "says": "NATS does not serve what is needed; Zulip's queue keeps the events meanwhile, if there is one",
      "since": "2027-01-15T08:00:00Z",
      "leads": true,
      "leader": "host-1-abc",
      "reasons": [
        {
          "side": "nats",
          "since": "2027-01-15T08:00:00Z",
          "tries": 3,
          "says": "NATS is <away>"
        }
      ],
      "queue": "q",
      "queue_expires": "2027-01-16T08:00:00Z",
      "last_poll": "2027-01-15T08:00:00Z",
      "last_event_id": 42,
      "last_stored": "2027-01-15T08:00:00Z",
      "last_sequence": 99,
      "gap": {
        "since": "2027-01-15T08:00:00Z",
        "cause": "Zulip has dropped the queue"
      },
      "counters": {
        "events_stored": {
          "message": 5,
          "other": 1
        },
        "bytes_stored": 1000,
        "events_rejected": 1,
        "events_skipped": 2,
        "events_excluded": 7,
        "events_oversize": 4,
        "messages_refilled": 3,
        "messages_erased": 6,
        "queues_registered": 2,
        "gaps": {
          "account": 0,
          "dropped": 1,
          "past": 0,
          "retired": 0,
          "tail": 0
        },
        "polls": {
          "empty": 1,
          "events": 10,
          "failed": 4,
          "limited": 3,
          "refused": 2
        },
        "rate_limited": 3,
        "errors": {
          "zulip": {
            "server": 7
          }
        }
      }
    },
    {
      "realm": "other",
      "ok": true,
      "state": "standby",
      "says": "this instance stands by, host-2-def leads",
      "since": "2027-01-15T08:00:00Z",
      "leads": false,
      "leader": "host-2-def",
      "reasons": [],
`
	if code != 503 || !strings.HasPrefix(text, want) {
		t.Errorf("%d, got\n%s\nwant\n%s", code, text, want)
	}
	if code, _ := get(t, "/status", standby()); code != 200 {
		t.Errorf("a standby alone: %d", code)
	}
}

// TestWedgedAlone: one loop that hangs is enough, and says which.
func TestWedgedAlone(t *testing.T) {
	bad := busy()
	bad.Late = WedgedAfter
	if code, text := get(t, "/healthz", standby(), bad); code != 200 || text != "other: its loop turns\nacme: its loop turns\n" {
		t.Errorf("a little late: %d %s", code, text)
	}
	bad.Late += time.Second
	code, text := get(t, "/healthz", standby(), bad)
	if want := "other: its loop turns\nacme: its loop hangs: a sign of life is due for 1m16s; start the process again, " +
		"which loses nothing\n"; code != 503 || text != want {
		t.Errorf("%d %s", code, text)
	}
	var report Report
	_, text = get(t, "/status", bad)
	if err := json.Unmarshal([]byte(text), &report); err != nil || report.Realms[0].State != "wedged" {
		t.Errorf("%v: %s", err, text)
	}
	if ago := time.Since(report.Realms[0].Since); ago < WedgedAfter || ago > WedgedAfter+time.Minute {
		t.Errorf("wedged since %v", report.Realms[0].Since)
	}
}

// Each state has a sentence.
func TestSentences(t *testing.T) {
	seen := map[string]bool{}
	for _, state := range bridge.States {
		says := Sentence(&bridge.Status{State: state})
		if says == Sentence(&bridge.Status{}) || seen[says] {
			t.Errorf("%s: %s", state, says)
		}
		seen[says] = true
	}
}

// Nothing else is there, and nothing can be written.
func TestOtherRequests(t *testing.T) {
	h := New("1.2.3", func() []bridge.Status { return nil })
	for request, want := range map[string]int{"GET /debug/pprof/": 404, "GET /healthz/x": 404, "POST /healthz": 405,
		"DELETE /status": 405, "HEAD /healthz": 200, "HEAD /": 200, "POST /": 405, "PUT /page.json": 405,
		"HEAD /page.json": 200, "GET /index.html": 404, "GET /page/": 404, "GET /page/page.js": 404, "GET /favicon.ico": 404,
		"GET /../monitor.go": 307} {
		method, path, _ := strings.Cut(request, " ")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		if w.Code != want {
			t.Errorf("%s: %d, want %d", request, w.Code, want)
		}
	}
}

// The README names the metrics that there are, with their labels, and no others; the same
// of the endpoints.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var in, are []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(zulip_nats_[a-z_]+(?:\\{[a-z,]+\\})?)` \\|").
		FindAllStringSubmatch(string(readme), -1) {
		in = append(in, m[1])
	}
	of := regexp.MustCompile(`fqName: "([a-z_]+)".*variableLabels: \{([a-z,]*)\}`)
	for _, d := range all {
		m := of.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("%s is not understood", d)
		}
		name := m[1]
		if m[2] != "" {
			name += "{" + m[2] + "}"
		}
		are = append(are, name)
	}
	slices.Sort(in)
	slices.Sort(are)
	if !slices.Equal(in, are) {
		t.Errorf("the README names\n%s\nand there are\n%s", strings.Join(in, "\n"), strings.Join(are, "\n"))
	}
	for _, path := range []string{"/", "/healthz", "/readyz", "/status", "/metrics"} {
		if code, _ := get(t, path, standby()); code != 200 || !strings.Contains(string(readme), "| `"+path+"` |") {
			t.Errorf("%s answers %d; is it in the README?", path, code)
		}
	}
	for _, state := range bridge.States {
		if !strings.Contains(string(readme), "`"+string(state)+"`") {
			t.Errorf("the README does not name the state %s", state)
		}
	}
}

// Who asks gets an answer, who can be asked by others is warned once, and a port that is
// taken is an error.
func TestServe(t *testing.T) {
	for address, level := range map[string]string{"127.0.0.1:0": "info", "[::1]:0": "info", ":0": "warn", "0.0.0.0:0": "warn"} {
		var log strings.Builder
		h := New("1.2.3", func() []bridge.Status { return []bridge.Status{standby()} })
		stop, err := Serve(address, h, false, zerolog.New(&log))
		if err != nil && strings.Contains(address, "::1") {
			continue // a machine without IPv6
		}
		if err != nil {
			t.Fatal(err)
		}
		var line struct{ Level, URL string }
		if err := json.Unmarshal([]byte(log.String()), &line); err != nil || line.Level != level {
			t.Errorf("%s: %v, the log is %s", address, err, log.String())
		}
		_, port, _ := net.SplitHostPort(strings.TrimPrefix(line.URL, "http://"))
		host := "127.0.0.1"
		if strings.Contains(address, "::1") {
			host = "::1"
		}
		url := fmt.Sprintf("http://%s/healthz", net.JoinHostPort(host, port))
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != "other: its loop turns\n" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s", url, body)
		}
		if again, err := Serve(net.JoinHostPort(host, port), h, false, zerolog.Nop()); err == nil {
			again()
			t.Error("a port that is taken is served again")
		}
		stop()
		if _, err := http.Get(url); err == nil {
			t.Error("it is served behind the stop")
		}
	}
}
