package bridge

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
)

func stored(subject string, headers ...string) *stream.Stored {
	h := map[string][]string{}
	for i := 0; i+1 < len(headers); i += 2 {
		h[headers[i]] = append(h[headers[i]], headers[i+1])
	}
	return &stream.Stored{Seq: 1, Subject: subject, Header: h}
}

// TestPlaceOf is the table of the design, section 9.1: what each kind of message, found
// as the newest, means for the next start.
func TestPlaceOf(t *testing.T) {
	const s = "zulip.acme.anything" // never judged by
	for _, tt := range []struct {
		name  string
		msg   *stream.Stored
		phase phase
		last  int64
		ok    bool
	}{
		{"live event", stored(s, "Zulip-Queue-Id", "q", "Zulip-Event-Id", "7", "Zulip-Origin", "live"),
			phasePoll, 7, true},
		{"rejected, moved on", stored(s, "Zulip-Queue-Id", "q", "Zulip-Event-Id", "7", "Bridge-Position", "7",
			"Bridge-Record", "rejected"), phasePoll, 7, true},
		{"rejected, the id goes back",
			stored(s, "Zulip-Queue-Id", "q", "Zulip-Event-Id", "3", "Bridge-Position", "7", "Bridge-Record",
				"rejected"), phasePoll, 7, true},
		{"skipped", stored(s, "Zulip-Queue-Id", "q", "Zulip-Event-Id", "7", "Bridge-Position", "7", "Bridge-Record",
			"skipped"), phasePoll, 7, true},
		{"erased", stored(s, "Zulip-Queue-Id", "q", "Bridge-Position", "7", "Bridge-Record", "erased"), phasePoll, 7, true},
		{"gap closed", stored(s, "Zulip-Queue-Id", "q", "Bridge-Position", "-1", "Bridge-Record", "gap-closed"),
			phasePoll, -1, true},
		{"new queue", stored(s, "Zulip-Queue-Id", "q", "Bridge-Position", "-1", "Bridge-Record", "queue", "Bridge-Next",
			"poll"), phasePoll, -1, true},
		{"lost queue's successor", stored(s, "Zulip-Queue-Id", "q", "Bridge-Position", "-1", "Bridge-Record", "queue",
			"Bridge-Next", "refill"), phaseRefill, -1, true},
		{"refilled", stored(s, "Zulip-Queue-Id", "q", "Bridge-Position", "-1", "Zulip-Origin", "backfill",
			"Zulip-Message-Id", "9"), phaseRefill, -1, true},
		{"gap opened", stored(s, "Zulip-Queue-Id", "q", "Bridge-Position", "7", "Bridge-Record", "gap-opened"),
			phaseRegister, 7, true},
		{"gap opened, no queue before", stored(s, "Bridge-Position", "-1", "Bridge-Record", "gap-opened"),
			phaseRegister, -1, true},
		{"foreign", stored(s), 0, 0, false},
		{"marker of the server", stored(s, "Nats-Marker-Reason", "MaxAge"), 0, 0, false},
		{"live event without queue", stored(s, "Zulip-Event-Id", "7", "Zulip-Origin", "live"), 0, 0, false},
		{"live event without a number",
			stored(s, "Zulip-Queue-Id", "q", "Zulip-Event-Id", "seven", "Zulip-Origin", "live"), 0, 0, false},
		{"unknown record", stored(s, "Zulip-Queue-Id", "q", "Bridge-Position", "7", "Bridge-Record", "from the future"),
			0, 0, false},
		{"unknown origin", stored(s, "Zulip-Queue-Id", "q", "Zulip-Event-Id", "7", "Zulip-Origin", "elsewhere"),
			0, 0, false},
	} {
		p, ok := resumePointOf(tt.msg)
		if ok != tt.ok || ok && (p.phase != tt.phase || p.at.Last != tt.last) {
			t.Errorf("%s: phase %v at %v, %v; want %v at %d, %v", tt.name, p.phase, p.at, ok, tt.phase, tt.last, tt.ok)
		}
	}
}

// TestLocateWalksBack finds the newest message of ours under foreign ones, across holes,
// and never takes another realm's for ours.
func TestLocateWalksBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		realm, err := subjects.ParseRealm("acme")
		if err != nil {
			t.Fatal(err)
		}
		s := &model.Stream{Filter: realm.All()}
		c := s.Client(t.Context())
		ours := stream.Message{Subject: "zulip.acme.message",
			Headers: []stream.Header{{Key: events.HeaderQueueID, Value: "q"}, {Key: events.HeaderEventID, Value: "5"},
				{Key: events.HeaderOrigin, Value: events.OriginLive}}}
		if _, err := c.Append(t.Context(), stream.Cursor{}, []stream.Message{ours}); err != nil {
			t.Fatal(err)
		}
		s.Publish("zulip.acme.message", []byte("foreign"))
		s.Publish("zulip.acme.message", []byte("foreign, and deleted"))
		s.Remove(1)
		s.Publish("zulip.acme.presence", []byte("foreign"))
		p, err := locate(t.Context(), c, realm, &below{})
		if err != nil {
			t.Fatal(err)
		}
		if p.phase != phasePoll || p.at != (poller.Position{Queue: "q", Last: 5}) {
			t.Errorf("located %v at %v, want poll at event 5 of q", p.phase, p.at)
		}
		if p.cursor != (stream.Cursor{Seq: 4}) {
			t.Errorf("the cursor is %+v, want the newest message's sequence 4, not acknowledged", p.cursor)
		}
	})
}

func TestHeaderValue(t *testing.T) {
	long := strings.Repeat("x", 300)
	for in, want := range map[string]string{
		"message":                "message",
		"a b":                    "a%20b",
		"new\r\nline: x":         "new%0D%0Aline:%20x",
		"é":                      "%C3%A9",
		"":                       "",
		long:                     long[:128],
		strings.Repeat("é", 100): strings.Repeat("%C3%A9", 21),
	} {
		if got := headerValue(in); got != want {
			t.Errorf("headerValue(%.20q) = %q, want %q", in, got, want)
		}
	}
}

func TestLossPauseGrows(t *testing.T) {
	for losses, want := range map[int][2]time.Duration{
		0:    {0, 0},
		1:    {0, 0},
		2:    {1500 * time.Millisecond, 2 * time.Second},
		3:    {3 * time.Second, 4 * time.Second},
		6:    {22500 * time.Millisecond, 30 * time.Second},
		1000: {22500 * time.Millisecond, 30 * time.Second},
	} {
		for range 20 {
			if d := lossPause(losses); d < want[0] || d > want[1] {
				t.Errorf("after %d losses the pause is %v, want %v to %v", losses, d, want[0], want[1])
			}
		}
	}
}
