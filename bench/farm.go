//go:build linux

package main

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"zulip-nats/zulipsim"
)

// farm is many organizations behind one address, each below a path of its own, with one
// bot each. Organization i is at the URL's /o/i.
type farm struct {
	t         *scope
	url       string
	all       []*organization
	authority string       // path of its certificate
	requests  atomic.Int64 // of all
}

// organization is one of them.
type organization struct {
	zulipsim.Server
	bot *zulipsim.Account
}

// newFarm starts n organizations as [newZulip] starts one, until the case ends. With https
// it speaks HTTP/2 as nginx does, 128 streams on a connection.
func newFarm(t *scope, n int, https bool) *farm {
	f := &farm{t: t}
	srv := httptest.NewUnstartedServer(f)
	if https {
		srv.EnableHTTP2 = true
		srv.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 128}
		srv.StartTLS()
		f.authority = filepath.Join(t.TempDir(), "ca.pem")
		t.must(os.WriteFile(f.authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600))
	} else {
		srv.Start()
	}
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	f.url = srv.URL
	for i := range n {
		o := new(organization)
		o.RealmURL, o.Forget, o.NoGzip, o.Seed = f.site(i), true, true, uint64(i)
		o.EventsRules, o.APIRules = []zulipsim.RateRule{}, []zulipsim.RateRule{}
		o.bot = o.Account("bridge-bot@example.com")
		f.all = append(f.all, o)
	}
	return f
}

func (f *farm) site(i int) string { return f.url + "/o/" + strconv.Itoa(i) }

func (f *farm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	number, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/o/"), "/")
	i, err := strconv.Atoi(number)
	if err != nil || i < 0 || i >= len(f.all) {
		http.NotFound(w, r)
		return
	}
	f.requests.Add(1)
	http.StripPrefix("/o/"+number, &f.all[i].Server).ServeHTTP(w, r)
}

// waiting is how many of the first n have a poll that waits.
func (f *farm) waiting(n int) (waiting int) {
	for _, o := range f.all[:n] {
		for _, q := range o.Queues() {
			if q.Dead == "" && q.Waiting {
				waiting++
				break
			}
		}
	}
	return waiting
}

// allWait waits until a poll of each of the first n waits.
func (f *farm) allWait(n int) {
	f.t.wait(fmt.Sprintf("the polls of %d realms", n), 20*time.Millisecond, func() bool { return f.waiting(n) == n })
}

// config writes a configuration for `run --config` with the first n.
func (f *farm) config(n int) string {
	var text strings.Builder
	for i, o := range f.all[:n] {
		fmt.Fprintf(&text, "[realm \"r%d\"]\nemail = %s\nkey = %s\nsite = %s\n", i, o.bot.Email, o.bot.Key, f.site(i))
		if f.authority != "" {
			fmt.Fprintf(&text, "cert_bundle = %s\n", f.authority)
		}
	}
	path := filepath.Join(f.t.TempDir(), "zulip-nats.conf")
	f.t.must(os.WriteFile(path, []byte(text.String()), 0o600))
	return path
}
