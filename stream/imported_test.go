package stream_test

import (
	"strings"
	"testing"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// JetStream in another account, imported under a prefix: all paths, reads and the object
// store work.
func TestImported(t *testing.T) {
	srv := natstest.StartProcess(t, `accounts {
		STORE { jetstream: enabled, exports: [
			{ service: "$JS.API.>", response: stream }, { service: "zulip.acme.>" }, { service: "$O.zulip_acme.>" } ] }
		CHAT { users: [ { user: bridge, password: b } ], imports: [
			{ service: { account: STORE, subject: "$JS.API.STREAM.>" }, to: "JS.store.API.STREAM.>" }
			{ service: { account: STORE, subject: "$JS.API.CONSUMER.>" }, to: "JS.store.API.CONSUMER.>" }
			{ service: { account: STORE, subject: "zulip.acme.>" } }, { service: { account: STORE, subject: "$O.zulip_acme.>" } } ] }
	}`)
	nc := connectTo(t, stream.ConnectConfig{URL: srv.URL, User: "bridge", Password: "b", Log: natstest.Log(t)})
	cfg := stream.Config{APIPrefix: "JS.store.API"}
	stored := 0
	for _, path := range paths {
		cfg.Path = path
		s := open(t, nc, cfg)
		// None of them is unclear, which a path that does not pass would be.
		for range 2 {
			if _, err := s.Append(t.Context(), last(t, s), messages(stored, 50)); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			stored += 50
		}
		if got := contents(t, s); strings.Join(got, " ") != strings.Join(ids(0, stored), " ") {
			t.Errorf("%s: the stream holds %d messages: %v", path, len(got), got)
		}
		if err := s.PutObject(t.Context(), "a", make([]byte, 3<<20)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	cfg.Realm, cfg.Filter, cfg.Domain = "acme", filter, "hub"
	if _, err := stream.Open(t.Context(), nc, cfg); err == nil || !strings.Contains(err.Error(), "give one of them") {
		t.Errorf("domain and prefix: %v", err)
	}
}
