package monitor

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"zulip-nats/bridge"
)

// metrics is the endpoint for Prometheus, with a registry of its own: what a library
// registers globally does not get in.
func metrics(version string, realms func() []bridge.Status) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{version, realms}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// The library's handler can compress, too, in ways that make the program 1 % larger.
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		families, err := registry.Gather()
		if err != nil {
			http.Error(w, "the metrics cannot be gathered: "+err.Error(), http.StatusInternalServerError)
			return
		}
		format := expfmt.NewFormat(expfmt.TypeTextPlain)
		w.Header().Set("Content-Type", string(format))
		text := expfmt.NewEncoder(w, format)
		for _, f := range families {
			if text.Encode(f) != nil {
				return // whoever asked is gone
			}
		}
	})
}

// collector reads the status of the realms when it is asked, so that no loop does
// anything for metrics that it does not do anyway. All labels have values from fixed
// sets, but for realm and version: nothing that Zulip sends makes a new series.
type collector struct {
	version string
	realms  func() []bridge.Status
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("zulip_nats_"+name, help, labels, nil)
}

var (
	buildInfo = desc("build_info", "1, for the version of this program.", "version")
	leader    = desc("leader", "1 if this instance works for the realm, 0 if not.", "realm")
	state     = desc("state", "1 for the state that the realm is in, 0 for all others.", "realm", "state")
	stored    = desc("events_stored_total",
		"Events stored, by type; other is all that no known Zulip sends.", "realm", "type")
	bytesStored = desc("bytes_stored_total",
		"Bytes of the bodies stored, in messages and in the object store.", "realm")
	lastStored = desc("last_stored_timestamp_seconds",
		"When the newest message of ours was stored. Absent where this instance does not lead.", "realm")
	lastPoll = desc("last_poll_timestamp_seconds",
		"When a poll was last answered. Absent where this instance does not lead.", "realm")
	queueExpires = desc("queue_expires_timestamp_seconds",
		"When Zulip may drop the queue if no poll comes until then. Absent where that is not known.", "realm")
	queueLife = desc("queue_life_seconds",
		"For how long Zulip keeps the queue without a poll. Absent where queue_expires_timestamp_seconds is.", "realm")
	pollsTotal = desc("polls_total", "Polls of Zulip by how they ended: events, empty, refused, limited, failed.",
		"realm", "outcome")
	errorsTotal = desc("errors_total", "Requests that failed, by side (nats, object store, zulip) and kind.", "realm",
		"side", "kind")
	rateLimited = desc("rate_limited_total", "Answers 429 of Zulip, to polls and to all other requests.", "realm")
	publish     = desc("publish_duration_seconds",
		"How long the stream took to acknowledge a batch of events, for all realms together.")
	gapsTotal = desc("gaps_total", "Gaps opened, by cause: dropped, account, tail, past, retired.", "realm", "cause")
	lastGap   = desc("last_gap_timestamp_seconds",
		"When a gap was last opened since the process began. Absent before the first.", "realm")
	gapOpen  = desc("gap_open", "1 while a gap is open whose messages are not all read back.", "realm")
	refilled = desc("messages_refilled_total", "Messages read back from Zulip's history and stored.", "realm")
	erased   = desc("messages_erased_total",
		"Messages of which something was erased, because they were deleted at Zulip.", "realm")
	rejected = desc("events_rejected_total", "Events that could not be carried as they are; a record has each.",
		"realm")
	excluded = desc("events_excluded_total", "Events left out, by --exclude-types and --no-direct-messages; records have "+
		"their ids.", "realm")
	oversize = desc("events_oversize_total",
		"Events and messages larger than a message of NATS may be, stored in the object store.", "realm")

	all = []*prometheus.Desc{buildInfo, leader, state, stored, bytesStored, lastStored, lastPoll, queueExpires, queueLife,
		pollsTotal, errorsTotal, rateLimited, publish, gapsTotal, lastGap, gapOpen, refilled, erased, rejected, excluded,
		oversize}
)

// Describe is for the registry.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range all {
		to <- d
	}
}

// Collect is for the registry.
func (c collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	when := func(d *prometheus.Desc, t time.Time, realm string) {
		if !t.IsZero() {
			gauge(d, float64(t.UnixMilli())/1000, realm)
		}
	}
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge(buildInfo, 1, c.version)
	var writes bridge.Durations
	for _, s := range c.realms() {
		realm := s.Realm
		gauge(leader, truth(s.Leads), realm)
		for _, is := range bridge.States {
			gauge(state, truth(s.State == is), realm, string(is))
		}
		if s.Leads {
			when(lastStored, s.Stored, realm)
			when(lastPoll, s.Answered, realm)
			when(queueExpires, s.Expires, realm)
			if s.Life > 0 {
				gauge(queueLife, s.Life.Seconds(), realm)
			}
		}
		gauge(gapOpen, truth(s.Gap != nil), realm)
		n := &s.Counters
		for kind, n := range n.Events {
			count(stored, n, realm, kind)
		}
		count(bytesStored, n.Bytes, realm)
		for outcome, n := range polls(n) {
			count(pollsTotal, n, realm, outcome)
		}
		for e, n := range n.Errors {
			count(errorsTotal, n, realm, e.Side, e.Kind)
		}
		count(rateLimited, n.RateLimited, realm)
		for cause, n := range gaps(n) {
			count(gapsTotal, n, realm, cause)
		}
		when(lastGap, n.LastGap, realm)
		count(refilled, n.Refilled, realm)
		count(erased, n.Erased, realm)
		count(rejected, n.Rejected, realm)
		count(excluded, n.Excluded, realm)
		count(oversize, n.Oversize, realm)
		for i := range writes.Up {
			writes.Up[i] += n.Writes.Up[i]
		}
		writes.Count += n.Writes.Count
		writes.Sum += n.Writes.Sum
	}
	buckets, below := map[float64]uint64{}, uint64(0) // Prometheus counts all below a bound
	for i, bound := range bridge.DurationBounds {
		below += writes.Up[i]
		buckets[bound] = below
	}
	to <- prometheus.MustNewConstHistogram(publish, writes.Count, writes.Sum.Seconds(), buckets)
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
