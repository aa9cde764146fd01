package lease_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"zulip-nats/lease"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// The bucket is in another account, whose JetStream ours imports under a prefix, and so
// the key has the prefix.
func TestImported(t *testing.T) {
	t.Parallel()
	srv := natstest.StartProcess(t, `accounts {
		STORE { jetstream: enabled, exports: [ { service: "$JS.API.>" }, { service: "$KV.zulip_bridge.acme.lease" } ] }
		CHAT { users: [ { user: bridge, password: b } ], imports: [
			{ service: { account: STORE, subject: "$JS.API.STREAM.>" }, to: "JS.store.API.STREAM.>" }
			{ service: { account: STORE, subject: "$JS.API.DIRECT.>" }, to: "JS.store.API.DIRECT.>" }
			{ service: { account: STORE, subject: "$KV.zulip_bridge.acme.lease" }, to: "JS.store.API.$KV.zulip_bridge.acme.lease" } ] }
	}`)
	as := func(writer string) lease.Config {
		cfg := config(t, strings.Replace(srv.URL, "://", "://bridge:b@", 1), writer, 10*time.Second)
		cfg.APIPrefix = "JS.store.API"
		return cfg
	}
	first := acquire(t, as("one"))
	second := acquireLater(t, as("two"))
	if h := second.stands(t); h.Writer != "one" {
		t.Errorf("it waits for %q", h.Writer)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if l := second.lease(t); !l.Held() {
		t.Error("the second does not hold what it got")
	}
	both := as("three")
	both.Domain = "hub"
	_, err := lease.Acquire(t.Context(), both)
	if _, ok := errors.AsType[*stream.ConfigError](err); !ok {
		t.Errorf("domain and prefix: %v", err)
	}
}
