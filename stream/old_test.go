package stream_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"zulip-nats/stream"
)

// Old servers do not know Nats-Expected-Last-Subject-Sequence-Subject, or do not obey it
// reliably. In a stream of our own the stream's sequence does without it.
func TestOldServerIsNotSentTheFilter(t *testing.T) {
	for _, test := range []struct {
		version       string // of the stream's leader, from 2.11 on
		subjects      []string
		first, second string
	}{
		{"", []string{filter}, "3||", "4||"},
		{"2.11.0", []string{filter}, "3||", "4||"},
		{"2.11.10", []string{filter}, "3||", "4||"},
		{"2.12.1", []string{filter}, "3||", "4||"},
		{"2.11.11", []string{filter}, "3|3|" + filter, "4||"},
		{"2.12.2", []string{filter}, "3|3|" + filter, "4||"},
		{"2.15.2", []string{filter}, "3|3|" + filter, "4||"},
		{"2.16.0-dev", []string{filter}, "3|3|" + filter, "4||"},
		{"3.0.0", []string{filter}, "3|3|" + filter, "4||"},
		{"2.11.11", []string{"zulip.>"}, "|3|" + filter, "|4|" + filter},
	} {
		js := startScript(t, test.version)
		js.config(map[string]any{"subjects": test.subjects, "allow_atomic": false, "allow_batched": false})
		s := openScript(t, js, stream.Config{})
		js.ackFrom(4)
		at, err := s.Append(t.Context(), last(t, s), messages(1, 1))
		if err == nil {
			_, err = s.Append(t.Context(), at, messages(2, 1))
		}
		if err != nil {
			t.Fatal(err)
		}
		js.want(t, test.first, test.second)
		if old := strings.Contains(strings.Join(s.Warnings(), "\n"),
			"update the server"); old != (test.first == "3||") {
			t.Errorf("%s: the warnings are %q", test.version, s.Warnings())
		}
		warnings := strings.Join(s.Warnings(), "\n")
		if strings.Contains(warnings, "leads it, and the oldest that is supported is nats-server 2.11.11 (of the "+
			"2.12 line: 2.12.2)") != (test.first == "3||") ||
			strings.Contains(warnings, "no lease is available") != (test.version == "") {
			t.Errorf("%s: the warnings are %q", test.version, s.Warnings())
		}
		slow := test.version == "" || strings.HasPrefix(test.version, "2.11.")
		if usual := strings.Join(s.Usual(), "\n"); strings.Contains(usual, "one message after the other") != slow {
			t.Errorf("%s: usual is %q; said that it is slow: want %v", test.version, usual, slow)
		}
	}
}

// In a stream that others use too, the filter is all there is: exit, and say why. Also
// when it becomes so under way.
func TestOldServerAndSharedStream(t *testing.T) {
	for version, named := range map[string]string{"": "a nats-server older than 2.11", "2.11.10": "nats-server 2.11.10",
		"2.12.1": "nats-server 2.12.1"} {
		js := startScript(t, version)
		s := openScript(t, js, stream.Config{})
		js.config(map[string]any{"subjects": []string{"zulip.>"}})
		_, opening := tryOpen(t, connect(t, js.url), stream.Config{Name: "ZULIP_acme"})
		_, looking := s.Info(t.Context())
		for _, err := range []error{opening, looking} {
			c, ok := errors.AsType[*stream.ConfigError](err)
			if !ok || c.Setting != "server version" {
				t.Fatalf("got %v", err)
			}
			for _, word := range []string{"stream ZULIP_acme", "zulip.>", named + " leads it",
				"update the server to 2.11.11",
				"nats stream add ZULIP_acme --subjects 'zulip.acme.>'"} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("the error %q does not say %q", err, word)
				}
			}
		}
	}
}

// The last messages were deleted, so that the stream's last sequence is not that of the
// newest message. On an old server nothing stands beside the sequence that INFO tells,
// and it is taken only where a second read shows that nobody else has written: with one
// replica.
func TestOldServerBehindAHole(t *testing.T) {
	for _, test := range []struct {
		name, version string
		replicas      int
		again         uint64 // what the second read finds
		want          []string
	}{
		{"one replica", "", 1, 3, []string{"3||", "9||"}},
		{"one replica, and somebody else wrote", "", 1, 9, []string{"3||"}},
		{"three replicas", "", 3, 3, []string{"3||"}},
		{"three replicas of a server that obeys the filter", "2.11.11", 3, 9,
			[]string{"3|3|" + filter, "9|3|" + filter}},
	} {
		t.Run(test.name, func(t *testing.T) {
			js := startScript(t, test.version)
			js.config(map[string]any{"num_replicas": test.replicas})
			s := openScript(t, js, stream.Config{Path: stream.PathSync})
			js.onWrite(func(n int, m *nats.Msg) {
				if n == 1 {
					js.refuse(m)
				} else {
					js.ack(m, 10)
				}
			})
			read := last(t, s)
			js.lastSeq(9, test.again)
			_, err := s.Append(t.Context(), read, messages(1, 1))
			js.want(t, test.want...)
			if len(test.want) == 2 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			want(t, err, stream.Refused)
			if told := strings.Contains(err.Error(), "one replica instead of 3"); told != (test.replicas == 3) {
				t.Errorf("the error is %q", err)
			}
		})
	}
}
