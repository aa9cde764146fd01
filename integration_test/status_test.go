package integration_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"zulip-nats/cli"
	"zulip-nats/integration_test/harness"
)

// status is what `zulip-nats status` prints, and its exit code.
func (w *world) status(args ...string) (table string, code int) {
	var out, err bytes.Buffer
	code = cli.Run(w.t.Context(), append([]string{"status", "--nats-url", w.nats}, args...), &out, &err)
	return out.String() + err.String(), code
}

// TestStatusOfPaused: an instance that hangs does not answer, and is not shown; the realm
// is served again when the other one leads.
func TestStatusOfPaused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t))
	table, code := "", -1
	is := func(what string, want int, lines int, args ...string) {
		t.Helper()
		harness.Eventually(t, what, func() bool {
			table, code = w.status(args...)
			return code == want && strings.Count(table, w.realm+"  ") == lines
		})
		t.Logf("%s:\n%s", what, table)
	}
	p := w.run()
	w.registered()
	is("one that leads", 0, 1)
	p.Pause()
	is("nobody that answers", 1, 0)
	is("a realm that is missed", 1, 1, "--realm", w.realm)
	if !strings.Contains(table, "not seen") {
		t.Errorf("the realm that is missed:\n%s", table)
	}
	q := w.run()
	q.Expect("queue_resumed")
	is("the other one leads", 0, 1)
	p.Resume()
	is("both", 0, 2)
	type instances = []struct{ Leads bool }
	var both instances
	// The one that was paused may not have noticed yet that it does not lead any more.
	harness.Eventually(t, "both in JSON, of which one leads", func() bool {
		var report struct {
			Realms []struct{ Instances instances }
		}
		var out bytes.Buffer
		if cli.Run(t.Context(), []string{"status", "--json", "--nats-url", w.nats}, &out, os.Stderr) != 0 {
			return false // and there may be no JSON
		}
		harness.Must(t, json.Unmarshal(out.Bytes(), &report))
		if len(report.Realms) != 1 {
			return false
		}
		both = report.Realms[0].Instances
		return len(both) == 2 && both[0].Leads != both[1].Leads
	})
	if !both[0].Leads {
		t.Errorf("who leads does not stand first: %+v", both)
	}
}
